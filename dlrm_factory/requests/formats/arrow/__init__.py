"""Apache Arrow streams: record batches of columns in, one column of scores out. Needs pyarrow."""

from dlrm_factory.requests.formats.arrow.answer import answer_arrow
from dlrm_factory.requests.formats.arrow.request import decode_arrow
from dlrm_factory.requests.formats.arrow.stream import MEDIA_TYPE, looks_like_arrow, pyarrow

__all__ = ["MEDIA_TYPE", "answer_arrow", "decode_arrow", "looks_like_arrow", "pyarrow"]
