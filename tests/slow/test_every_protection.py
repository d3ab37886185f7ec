"""Every protection in searches of images and of text; `make test` has each in one of them."""

import pytest

import test_search


@pytest.mark.parametrize("config", [test_search.TINY, test_search.SMALL_TEXT], ids=["images", "text"])
@pytest.mark.parametrize("protection", test_search.RIVALS)
def test_rivals_run_and_go_on_bit_for_bit(protection, config):
    test_search.test_rivals_run_and_go_on_bit_for_bit(protection, config)
