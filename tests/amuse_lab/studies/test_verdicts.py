"""Verdicts: against scipy on what the records say, and what may and may not decide them."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from amuse_lab.optimizers import AdamW
from amuse_lab.studies.frontier import envelope_steps_to, extra_steps, slope, steps_to_envelope
from amuse_lab.studies.reported import reported
from amuse_lab.studies.statistics import log_weights
from amuse_lab.studies.study import Entry, Record, Study
from amuse_lab.studies.tuning import wanted
from amuse_lab.studies.verdicts import Findings, Verdict, findings, rule, size, word
from tests.amuse_lab.studies import invented

Found = dict[str, Record]


@pytest.fixture(scope="module")
def study() -> Study:
    return invented.study()


@pytest.fixture(scope="module")
def records(study: Study) -> Found:
    return invented.records(study, ahead=0.02)


def two_scheduled() -> Study:
    """The invented study with a second scheduled optimizer."""
    study = invented.study()
    tuned = study.entry("muon-cosine").tuned
    second = Entry("adamw-cosine", AdamW(lr=0.01, warmup_steps=10), tuned, ("x", "power 10"), scheduled=True)
    return replace(study, entries=(*study.entries, second))


def shifted(records: Found, applies: Callable[[Record], bool], by: float) -> Found:
    """The records with a number added to all readings of some of them."""
    found = dict(records)
    for key, record in records.items():
        if applies(record):
            readings = {
                step: {
                    name: {what: value + by for what, value in values.items()}
                    for name, values in each.items()
                }
                for step, each in record.readings.items()
            }
            found[key] = replace(record, readings=readings)
    return found


def verdict(found: Findings, entry: str, horizon: int) -> Verdict:
    verdict = found.verdict(entry, horizon)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("low", "high", "expected", "by"),
    [
        (-0.02, -0.01, "ahead", "more than"),
        (-0.02, -0.001, "ahead", ""),
        (-0.004, -0.001, "ahead", "less than"),
        (-0.004, 0.004, "level", "less than"),
        (-0.006, 0.004, "undecided", ""),
        (-0.004, 0.005, "undecided", ""),
        (0.001, 0.004, "behind", "less than"),
        (0.006, 0.02, "behind", "more than"),
    ],
)
def test_the_words_follow_the_rule(low: float, high: float, expected: str, by: str) -> None:
    assert (word(low, high, 0.005), size(low, high, 0.005)) == (expected, by)


def test_the_rule_names_its_words_and_its_numbers(study: Study) -> None:
    text = rule(replace(study, margin=0.0123))
    for part in ("Ahead:", "Behind:", "Level:", "Undecided:", "-0.0123 and 0.0123", "95 %", "all 4 horizons"):
        assert part in text


@pytest.mark.parametrize(("ahead", "expected"), [(0.02, {"ahead"}), (-0.02, {"behind"})])
def test_a_clear_difference_is_found_at_every_horizon(study: Study, ahead: float, expected: set[str]) -> None:
    found = findings(study, invented.records(study, ahead=ahead))
    verdicts = found.verdicts("amuse")
    assert list(verdicts) == list(study.horizons)
    assert {verdict.word for verdict in verdicts.values()} == expected
    overall = found.overall("amuse")
    assert overall is not None
    assert {overall.area_word, overall.worst_word} == expected
    assert found.verdicts("muon-cosine") == {}
    assert found.overall("muon-cosine") is None


def test_no_difference_is_level_or_undecided(study: Study) -> None:
    verdicts = findings(study, invented.records(study)).verdicts("amuse")
    assert {verdict.word for verdict in verdicts.values()} <= {"level", "undecided"}
    wide = findings(replace(study, margin=0.5), invented.records(study)).verdicts("amuse")
    assert {verdict.word for verdict in wide.values()} == {"level"}


def test_a_verdict_is_scipys_paired_test_on_what_the_records_say(study: Study, records: Found) -> None:
    own, other = (
        {
            record.seed: record.readings[160]["power 10"]["loss"]
            for record in records.values()
            if record.entry == name and record.seed not in (0, 100) and 160 in record.readings
        }
        for name in ("amuse", "muon-cosine")
    )
    assert sorted(own) == sorted(other) == [1, 2, 3, 4]
    paired = stats.ttest_rel([own[seed] for seed in (1, 2, 3, 4)], [other[seed] for seed in (1, 2, 3, 4)])
    expected = paired.confidence_interval(0.95)
    found = verdict(findings(study, records), "amuse", 160)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.seeds == (1, 2, 3, 4)
    assert verdict(findings(study, records), "amuse", 320).seeds == (1, 2, 3)
    spread = math.sqrt(np.var(list(own.values()), ddof=1) + np.var(list(other.values()), ddof=1))
    assert found.unpaired_sd == pytest.approx(spread)
    assert found.pairing == pytest.approx((spread / found.difference.sd) ** 2)
    assert found.pairing > 1  # the invented noise is mostly the seed's


def test_the_area_is_the_integral_over_the_logarithm_of_the_step(study: Study, records: Found) -> None:
    found = findings(study, records)
    overall = found.overall("amuse")
    assert overall is not None
    assert overall.area.n == 3
    logs = np.log(study.horizons)
    means = [
        np.trapezoid([found.at("amuse", h)[s] - found.at("muon-cosine", h)[s] for h in study.horizons], logs)
        for s in (1, 2, 3)
    ] / (logs[-1] - logs[0])
    assert overall.area.mean == pytest.approx(np.mean(means))
    assert overall.area.half == pytest.approx(
        np.std(means, ddof=1) / math.sqrt(3) * float(stats.t.ppf(0.975, 2))
    )
    assert sum(log_weights((1, 3, 100))) == pytest.approx(1)
    worst = max(verdict.difference.mean for verdict in found.verdicts("amuse").values())
    assert overall.worst == worst
    assert overall.worst_low < worst < overall.worst_high


def test_partial_records_give_what_they_have(study: Study) -> None:
    # One after the other as a study would make them: after each, all that is said must be sayable.
    found: Found = {}
    counts = []
    while missing := wanted(study, found):
        request = missing[0]
        found[request.key(study)] = invented.run(study, request)
        now = findings(study, found)
        verdicts = now.verdicts("amuse")
        counts.append(sum(verdict.difference.n for verdict in verdicts.values()))
        for horizon in study.horizons:
            steps_to_envelope(now, "amuse", horizon)
            envelope_steps_to(now, "amuse", horizon)
            slope(now, horizon)
        for each in verdicts.values():
            extra_steps(now, each)
            assert each.word == "undecided" or each.difference.n > 1
        now.overall("amuse")
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 4 + 4 + 4 + 3


def test_an_envelope_without_rivals_stands_alone(study: Study, records: Found) -> None:
    only = {key: record for key, record in records.items() if record.entry == "muon-cosine"}
    found = findings(study, only)
    assert set(found.envelope) == set(study.horizons)
    assert found.verdicts("amuse") == {}
    only = {key: record for key, record in records.items() if record.entry == "amuse"}
    found = findings(study, only)
    assert found.envelope == {}
    assert found.verdicts("amuse") == {}
    assert len(found.at("amuse", 320)) == 3


def test_trials_decide_what_is_reported_and_nothing_else(study: Study, records: Found) -> None:
    before = findings(study, records)
    assert all(0 not in seeds for values in before.values.values() for seeds in values.values())
    chosen = {
        tuple(choice.point.items()) for each in before.reported.values() for choice in each.choices.values()
    }
    lost = shifted(records, lambda r: r.seed in (0, 100) and tuple(r.point.items()) not in chosen, 0.3)
    won = shifted(records, lambda r: r.seed in (0, 100) and tuple(r.point.items()) in chosen, -0.3)
    for changed in (lost, won):
        assert changed != records
        assert findings(study, changed).verdicts("amuse") == before.verdicts("amuse")


def test_the_envelope_is_not_chosen_on_reported_seeds() -> None:
    study = two_scheduled()
    records = invented.records(study)
    tuned_better = shifted(records, lambda r: r.entry == "adamw-cosine" and r.seed in (0, 100), -0.1)
    found = findings(
        study, shifted(tuned_better, lambda r: r.entry == "adamw-cosine" and r.seed not in (0, 100), 0.2)
    )
    assert set(found.envelope.values()) == {"adamw-cosine"}
    assert verdict(found, "muon-cosine", 80).word == "ahead"
    assert verdict(found, "muon-cosine", 80).envelope == "adamw-cosine"
    tuned_worse = shifted(records, lambda r: r.entry == "adamw-cosine" and r.seed in (0, 100), 0.1)
    found = findings(
        study, shifted(tuned_worse, lambda r: r.entry == "adamw-cosine" and r.seed not in (0, 100), -0.2)
    )
    assert set(found.envelope.values()) == {"muon-cosine"}


def test_the_envelope_may_change_from_horizon_to_horizon() -> None:
    study = two_scheduled()
    records = invented.records(study)
    found = findings(
        study,
        shifted(records, lambda r: r.entry == "adamw-cosine" and r.steps == 80 and r.seed in (0, 100), -0.1),
    )
    assert found.envelope[80] == "adamw-cosine"
    assert found.verdict("adamw-cosine", 80) is None
    assert verdict(found, "amuse", 80).envelope == "adamw-cosine"


def test_a_failed_run_is_neither_dropped_nor_averaged(study: Study, records: Found) -> None:
    broken = dict(records)
    (key,) = (r.key for r in records.values() if r.entry == "amuse" and r.seed == 2)
    kept = {step: values for step, values in records[key].readings.items() if step <= 100}
    broken[key] = replace(records[key], steps=100, readings=kept, failure="the loss is nan at step 101")
    found = findings(study, broken)
    assert found.at("amuse", 160)[2] == math.inf
    assert [verdict(found, "amuse", h).word for h in study.horizons] == ["ahead", "ahead", *["behind"] * 2]
    assert verdict(found, "amuse", 160).difference.n == 4
    overall = found.overall("amuse")
    assert overall is not None
    assert (overall.area_word, overall.worst_word) == ("behind", "behind")
    assert (math.isnan(overall.area.mean), overall.worst_horizon) == (True, 160)
    reach = steps_to_envelope(found, "amuse", 40)
    assert reach is not None
    assert reach.crossing.where == "at"
    assert envelope_steps_to(found, "amuse", 160) is None


def test_the_readout_is_the_chosen_one_or_the_one_asked_for(study: Study, records: Found) -> None:
    each = reported(study, records)["amuse"]
    assert {run.choice.readout for run in each.runs} == {"power 10"}
    chosen, at_x = each.values("loss"), each.values("loss", "x")
    assert list(chosen) == list(at_x) == list(study.curve)
    assert all(
        at_x[step][seed] - value == pytest.approx(0.002, abs=1e-5)
        for step, values in chosen.items()
        for seed, value in values.items()
    )
    assert list(reported(study, records)["muon-cosine"].values("loss")) == list(study.horizons)
    assert each.missing == 0
    assert reported(study, {})["amuse"].missing == 0  # nothing is decided, so nothing is wanted yet


def powers(study: Study, *, faster: float) -> Findings:
    """Findings without noise: the envelope's loss falls with ln steps, the other is so many times faster."""
    found = reported(study, invented.records(study))
    values = {
        name: {
            step: {seed: 4 - 0.5 * math.log(step * (faster if name == "amuse" else 1.0)) for seed in seeds}
            for step, seeds in each.values("loss").items()
        }
        for name, each in found.items()
    }
    return Findings(study, found, dict.fromkeys(study.horizons, "muon-cosine"), values)


def test_steps_and_losses_are_translated_into_each_other(study: Study) -> None:
    found = powers(study, faster=1.25)
    for horizon in study.horizons:
        reach = steps_to_envelope(found, "amuse", horizon)
        assert reach is not None
        assert reach.crossing.steps == pytest.approx(horizon / 1.25)
        assert reach.share == pytest.approx(1 / 1.25)
        assert slope(found, horizon).mean == pytest.approx(-0.5)
        share = extra_steps(found, verdict(found, "amuse", horizon))
        assert share is not None
        assert share.mean == pytest.approx(-math.log(1.25))  # to first order 1 / 1.25 - 1
        reach = envelope_steps_to(found, "amuse", horizon)
        assert reach is not None
        assert (reach.crossing.where == "beyond") == (horizon == 320)
        if horizon < 320:
            assert reach.crossing.steps == pytest.approx(horizon * 1.25)


def test_a_share_of_steps_has_the_interval_of_its_difference(study: Study, records: Found) -> None:
    found = findings(study, records)
    falls = slope(found, 80)
    at_80 = verdict(found, "amuse", 80)
    share = extra_steps(found, at_80)
    assert share is not None
    means = [
        np.mean([found.at("muon-cosine", horizon)[seed] for seed in (1, 2, 3, 4)]) for horizon in (40, 160)
    ]
    assert falls.mean == pytest.approx((means[1] - means[0]) / math.log(4))
    assert share.mean == pytest.approx(at_80.difference.mean / -falls.mean)
    assert 0 < share.half == pytest.approx(at_80.difference.half / -falls.mean)
    assert (share.n, share.mean < 0) == (4, True)


def test_a_share_of_steps_is_left_out_where_it_means_nothing(study: Study, records: Found) -> None:
    """Beyond 30 %, and where the slope of the envelope may be 0."""
    far = findings(study, shifted(records, lambda r: r.entry == "amuse", 0.4))
    assert extra_steps(far, verdict(far, "amuse", 80)) is None
    flat = findings(
        study,
        shifted(records, lambda r: r.entry == "muon-cosine" and r.seed % 2 == 1 and r.steps == 160, 2.0),
    )
    assert slope(flat, 80).low < 0 < slope(flat, 80).high
    assert extra_steps(flat, verdict(flat, "amuse", 80)) is None


def test_slower_runs_go_on_over_the_seeds_that_go_on(study: Study) -> None:
    found = powers(study, faster=0.8)
    seeds = {}
    for horizon in study.horizons:
        reach = steps_to_envelope(found, "amuse", horizon)
        assert reach is not None
        seeds[horizon] = reach.seeds
        if horizon < 320:
            assert reach.crossing.steps == pytest.approx(horizon / 0.8)
    # Beyond 160 steps there are three seeds, so one stopping step of 200 is that of these three.
    assert seeds == {40: (1, 2, 3, 4), 80: (1, 2, 3, 4), 160: (1, 2, 3), 320: (1, 2, 3)}
    last = steps_to_envelope(found, "amuse", 320)
    assert last is not None
    assert (last.crossing.where, last.crossing.steps) == ("beyond", 320)
    share = extra_steps(found, verdict(found, "amuse", 80))
    assert share is not None
    assert share.mean == pytest.approx(-math.log(0.8))
