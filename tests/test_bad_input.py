"""Bad and unusual input to the Python interface: one clear error, or the right result; and nothing else has changed.

The tables are in `kinds_images.py`, `kinds_models.py` and `kinds_arguments.py`; the tools they are written with, in `kinds.py`.
"""

import re
import warnings

import numpy as np
import pytest
import torch

import kinds_arguments  # noqa: F401  each fills the table
import kinds_images  # noqa: F401
import kinds_models  # noqa: F401
from kinds import CASES, Bench

KINDS = 514  # docs/reliability.md states it


def test_the_number_of_kinds_is_as_stated():
    kinds = {case.kind for case in CASES}
    assert len(kinds) == KINDS
    assert len({(case.kind, case.over) for case in CASES}) == len(CASES), "a case is there twice"
    for case in CASES:
        assert not issubclass(case.error or ValueError, (RuntimeError, LookupError, AttributeError)), case.kind


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.over}".strip("-"))
def test_it_is_refused_clearly_or_answered_rightly(case, tmp_path, monkeypatch):
    bench = Bench(tmp_path, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch.jit
        warnings.filterwarnings("ignore", "Corrupt EXIF")
        if case.error:
            with pytest.raises(case.error, match=f"(?s){case.message}") as caught:
                case.call(bench)
            assert len(str(caught.value)) < 700 and not re.search(r"0x[0-9a-f]{6}", str(caught.value))
        else:
            found, expected = case.call(bench), case.expected(bench)
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(found, expected, check_stride=False)
                assert found.isfinite().all()
            else:
                assert type(found) is type(expected) and np.array_equal(found, expected)
    assert bench.unchanged()
