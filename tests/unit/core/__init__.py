"""The core: what a job knows and decides, without sources, embedders and stores."""
