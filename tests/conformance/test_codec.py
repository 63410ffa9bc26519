"""The codec keeps the promises of every codec, with each of its serializers and with signatures."""

from __future__ import annotations

import pytest

from celery_cachetiers.codec import Codec
from celery_cachetiers.testing.conformance import CodecConformance


class TestJson(CodecConformance):
    @pytest.fixture(params=[(), (b"k" * 32,)], ids=["unsigned", "signed"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        return Codec("json", ["json"], compression="gzip", signing_keys=request.param)


class TestPickle(CodecConformance):
    values = (*CodecConformance.values, (1, (2,)), {1: {2}}, b"bytes")

    @pytest.fixture
    def codec(self) -> Codec:
        return Codec("pickle", ["pickle"])
