"""Schedules against openpi's recorded ones (third_party/openpi/README.md says of which commit)."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from pi0rag_jax.errors import Pi0RagError
from train import optimizer

STEPS = [0, 1, 10, 500, 999, 1000, 1001, 5000, 15000, 29999, 30000, 40000, 100000]
RECORDED = {
  "default": [2.497472451068461e-08, 4.994944902136922e-08, 2.747256075963378e-07, 1.2512487046478782e-05,
              2.4975024643936194e-05, 2.499999936844688e-05, 2.499999936844688e-05, 2.3960221369634382e-05,
              1.4359062333824113e-05, 2.499999936844688e-06, 2.499999936844688e-06, 2.499999936844688e-06,
              2.499999936844688e-06],
  "pi05_libero": [4.998582880944014e-09, 9.997165761888027e-09, 5.499168764799833e-08, 2.5047484086826444e-06,
                  4.999499651603401e-06, 5.004498234484345e-06, 5.009496817365289e-06, 2.500249865988735e-05,
                  4.999999873689376e-05, 4.999999873689376e-05, 4.999999873689376e-05, 4.999999873689376e-05,
                  4.999999873689376e-05],
  "rsqrt": [4.994944902136922e-08, 9.989889804273844e-08, 5.494512151926756e-07, 2.5024974092957564e-05,
            4.995004928787239e-05, 4.999999873689376e-05, 4.999750308343209e-05, 4.225771044730209e-05,
            3.227486013201997e-05, 2.531880818423815e-05, 2.5318482585134916e-05, 2.2587695639231242e-05,
            1.5144562894420233e-05],
}
SCHEDULES = {
  "default": optimizer.cosine(peak=2.5e-5, warmup_steps=1000, decay_steps=30_000, end=2.5e-6),
  "pi05_libero": optimizer.cosine(peak=5e-5, warmup_steps=10_000, decay_steps=1_000_000, end=5e-5),
  "rsqrt": optimizer.rsqrt(peak=5e-5, warmup_steps=1000, timescale=10_000),
}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_openpis_schedules(name):
  np.testing.assert_allclose([SCHEDULES[name](step) for step in STEPS], RECORDED[name], rtol=2e-6)


def test_an_unknown_schedule_names_the_known_ones():
  config = ConfigDict({"schedule": "cosin", "learning_rate": 1.0, "warmup_steps": 0})
  with pytest.raises(Pi0RagError, match=r"unknown schedule 'cosin'.*cosine"):
    optimizer.make_schedule(config)
