import pytest

pytest.register_assert_rewrite(
    f"{__name__}.source_contract", f"{__name__}.embedder_contract", f"{__name__}.store_contract"
)
