import math
from dataclasses import replace

import pytest

from amuse_lab.errors import ConfigError
from amuse_lab.studies.study import Entry, Point, Record, Request, Scale, Study
from amuse_lab.studies.tuning import first_round, ranked, reports, second_round, trial, tuning, wanted
from tests.amuse_lab.studies import invented


def entry(study: Study, name: str) -> Entry:
    return study.entry(name)


@pytest.mark.parametrize(
    ("scale", "share", "value"),
    [
        (Scale(0.01, 1.0), 0.5, 0.1),
        (Scale(0.01, 1.0), 0.0, 0.01),
        (Scale(0.01, 1.0), 1.5, 10.0),
        (Scale(0.9, 0.999, complement=True), 0.5, 0.99),
        (Scale(100, 1600, whole=True), 0.5, 400),
    ],
)
def test_a_scale_spreads_by_the_logarithm_and_share_undoes_it(
    scale: Scale, share: float, value: float
) -> None:
    assert scale.at(share) == pytest.approx(value)
    assert scale.share(scale.at(share)) == pytest.approx(share)


def test_wrong_ranges_and_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="low must be positive and below high"):
        Scale(1.0, 0.5)
    with pytest.raises(ConfigError, match="high must be below 1 with complement"):
        Scale(0.5, 1.5, complement=True)
    with pytest.raises(ConfigError, match="reporting_seeds must be without a tuning seed"):
        replace(invented.study(), tuning_seeds=(0, 2))
    with pytest.raises(ConfigError, match="horizons must be at least two, ascending"):
        replace(invented.study(), horizons=(80, 40))


def test_everybody_gets_the_same_shares_of_the_ranges_spread_evenly() -> None:
    study = replace(invented.study(), trials=16)
    for each in study.entries:
        points = first_round(study, each)
        shares = [each.tuned["lr"].share(point["lr"]) for point in points]
        assert len(points) == 16
        assert all(0 <= share <= 1 for share in shares)
        # A quasi-random sequence in base 2: each sixteenth of the range has one.
        assert sorted(int(16 * share) for share in shares) == list(range(16))
    first, second = (first_round(study, each) for each in study.entries)
    assert first == second  # the ranges are the same


def test_a_second_round_goes_beyond_the_edge_at_which_the_best_learning_rate_lies() -> None:
    each = invented.study().entries[0]
    points = [{"lr": 0.01, "lr_rest": 0.01}, {"lr": 0.02, "lr_rest": 0.02}, {"lr": 0.04, "lr_rest": 0.04}]
    inside = [{"lr": 0.02, "lr_rest": 0.02}][0]
    assert second_round(each, points, inside) == []
    beyond = second_round(each, points, points[2])
    assert [point["lr"] > 0.04 for point in beyond] == [True, True, False, False]
    assert [point["lr_rest"] > 0.04 for point in beyond] == [False, False, True, True]
    below = second_round(each, points, points[0])
    assert all(min(point.values()) < 0.01 for point in below)


def test_the_best_trial_is_the_one_nearest_to_the_optimum_of_the_formula() -> None:
    study = invented.study()
    records = invented.records(study)
    for each in study.entries:
        state = tuning(study, each, records)
        assert state.decided
        assert list(state.choices) == list(study.horizons)
        for choice in state.choices.values():
            assert choice.readout == "power 10"  # the best of the formula
        tried = {tuple(r.point.values()) for r in records.values() if r.entry == each.name and r.seed == 0}

        def away(point: tuple[float, ...]) -> float:
            return sum(math.log(value / 0.02) ** 2 for value in point)

        shortest = state.choices[study.horizons[0]].point
        assert away(tuple(shortest.values())) == min(map(away, tried))


def test_the_score_counts_every_horizon_alike_however_far_apart_its_losses_lie() -> None:
    study = invented.study()
    amuse = entry(study, "amuse")
    points = first_round(study, amuse)[:3]
    # One is the best at the shortest horizon, by far; another at the three others, each time by little.
    losses = {40: (2.0, 3.0, 4.0), 80: (1.82, 1.8, 1.81), 160: (1.72, 1.7, 1.71), 320: (1.62, 1.6, 1.61)}
    records: dict[str, Record] = {}
    for number, point in enumerate(points):
        readings = {h: {"x": {"loss": values[number]}} for h, values in losses.items()}
        record = replace(invented.run(study, trial(study, amuse, point, 320)), readings=readings)
        records[record.key] = record
    order = ranked(study, amuse, points, study.horizons, records)
    assert [choice.point for choice in order] == [points[1], points[2], points[0]]
    # Regrets at 40, 80, 160, 320 in units of the distance from the best to the median:
    assert order[0].score == pytest.approx((1 + 0 + 0 + 0) / 4)
    assert order[1].score == pytest.approx((2 + 1 + 1 + 1) / 4)
    assert order[2].score == pytest.approx((0 + 2 + 2 + 2) / 4)
    assert order[0].losses == {40: 3.0, 80: 1.8, 160: 1.7, 320: 1.6}


def test_the_best_of_the_first_seed_are_chosen_among_by_the_mean_over_all_tuning_seeds() -> None:
    study = invented.study()
    amuse = entry(study, "amuse")
    records: dict[str, Record] = {}
    first_best: Point = {}
    while missing := tuning(study, amuse, records).wanted:
        for request in missing:
            run = invented.run(study, request)
            if request.seed == 100:  # with this seed the second best of the first one is far ahead
                better = 1.0 if dict(request.point) != dict(first_best) else 0.0
                readings = {
                    step: {name: {"loss": values["loss"] - better} for name, values in readouts.items()}
                    for step, readouts in run.readings.items()
                }
                run = replace(run, readings=readings)
            records[run.key] = run
        alone = replace(study, tuning_seeds=(0,))
        state = tuning(alone, amuse, records)
        first_best = state.choices[320].point if state.decided else {}
    seeds = [(r.seed, tuple(r.point.values())) for r in records.values()]
    assert len([seed for seed, _ in seeds if seed == 100]) == study.confirmed
    assert dict(tuning(study, amuse, records).choices[320].point) != dict(first_best)


def test_budgets_are_those_of_the_study() -> None:
    study = invented.study()
    records = invented.records(study)
    edges = 4  # at most two learning rates have two more trials
    for horizon in study.horizons[:-1]:
        trials = [r for r in records.values() if (r.entry, r.seed, r.steps) == ("muon-cosine", 0, horizon)]
        assert study.trials <= len(trials) <= study.trials + edges
    longest = [r for r in records.values() if (r.entry, r.seed, r.steps) == ("muon-cosine", 0, study.longest)]
    assert len(longest) == study.reused
    amuse = [r for r in records.values() if (r.entry, r.seed) == ("amuse", 0)]
    assert study.trials <= len(amuse) <= study.trials + edges
    assert {r.steps for r in amuse} == {study.longest}
    for horizon in study.horizons:
        again = [r for r in records.values() if (r.entry, r.seed, r.steps) == ("muon-cosine", 100, horizon)]
        assert len(again) == study.confirmed
    assert len([r for r in records.values() if (r.entry, r.seed) == ("amuse", 100)]) == study.confirmed


def test_reports_use_other_seeds_and_the_chosen_readout_beside_x() -> None:
    study = invented.study()
    records = invented.records(study)
    for each in study.entries:
        state = tuning(study, each, records)
        requests = [request for _, request in reports(study, each, state.choices)]
        assert {request.seed for request in requests} == set(study.reporting_seeds)
        assert all(request.readouts == ("x", "power 10") for request in requests)
        to_the_end = [request for request in requests if request.steps == study.longest]
        assert len(to_the_end) == study.seeds_at_longest


def test_nothing_is_wanted_of_a_complete_study_and_trials_come_before_reports() -> None:
    study = invented.study()
    records = invented.records(study)
    assert wanted(study, records) == []
    assert all(not request.reported for request in wanted(study, {}))
    tuned = {
        key: record
        for key, record in records.items()
        if record.entry == "muon-cosine" and record.seed in study.tuning_seeds
    }
    following = wanted(study, tuned)
    order = [(request.entry, request.reported, request.seed) for request in following]
    kinds = list(dict.fromkeys((name, seed) for name, _, seed in order))
    # Three seeds of the first optimizer, the trials of the second, and then the other seeds.
    assert kinds == [
        ("muon-cosine", 1),
        ("muon-cosine", 2),
        ("muon-cosine", 3),
        ("amuse", 0),
        ("muon-cosine", 4),
    ]
    of_seed_2 = {key for key, record in records.items() if record.seed == 2}
    missing = wanted(study, {key: record for key, record in records.items() if key not in of_seed_2})
    assert {request.key(study) for request in missing} == of_seed_2


def test_a_short_run_of_an_optimizer_without_a_horizon_is_the_beginning_of_a_long_one() -> None:
    study = invented.study()
    amuse, cosine = entry(study, "amuse"), entry(study, "muon-cosine")
    for each, same in ((amuse, True), (cosine, False)):
        point = first_round(study, each)[0]
        keys = {trial(study, each, point, steps).key(study) for steps in (40, 80)}
        assert (len(keys) == 1) is same
    point = first_round(study, amuse)[0]
    long = invented.run(study, trial(study, amuse, point, 320))
    assert long.satisfies(trial(study, amuse, point, 40), study)
    short = invented.run(study, trial(study, amuse, point, 40))
    assert not short.satisfies(trial(study, amuse, point, 320), study)


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"clip": 1.0}])
def test_the_key_covers_what_decides_a_step_and_nothing_else(change: dict[str, object]) -> None:
    study = invented.study()
    request = trial(study, study.entries[1], first_round(study, study.entries[1])[0], 40)
    key = request.key(study)
    assert replace(request, seed=9).key(study) != key
    assert replace(request, point=dict(request.point) | {"lr": 0.5}).key(study) != key
    assert request.key(replace(study, run=replace(study.run, **change))) != key
    for free in ({"threads": 2}, {"device": "cuda"}, {"log_every": 7}, {"recipe": "other"}):
        assert request.key(replace(study, run=replace(study.run, **free))) == key
    assert replace(request, readouts=("y",), reported=True).key(study) == key


def test_a_failed_trial_is_the_worst_and_is_not_tried_again() -> None:
    study = invented.study()
    amuse = entry(study, "amuse")
    points = first_round(study, amuse)
    records: dict[str, Record] = {}
    for number, point in enumerate(points):
        record = invented.run(study, trial(study, amuse, point, study.longest))
        if number == 2:
            record = replace(record, readings={}, steps=3, failure="the training loss of step 3 is inf")
        records[record.key] = record
    best = ranked(study, amuse, points, study.horizons, records)
    assert best[-1].point == points[2]
    assert best[-1].score == math.inf
    failed = trial(study, amuse, points[2], study.longest)
    assert records[failed.key(study)].satisfies(failed, study)


def test_the_curve_has_the_horizons_and_five_steps_a_doubling() -> None:
    study = invented.study()
    assert set(study.horizons) <= set(study.curve)
    assert study.curve[0] == 10
    inside = [step for step in study.curve if 80 < step <= 160]
    assert len(inside) == 5
    request = Request("amuse", {}, 1, 80, reported=True, readouts=("x",))
    assert request.wanted_at(study)[-1] == 80
    assert replace(request, reported=False).wanted_at(study) == (40, 80)
    assert replace(request, entry="muon-cosine").wanted_at(study) == (80,)
