"""Named mutations of the science, each with a test that must fail under it: `python tests/mutations.py [NAME ...]`.

A mutation replaces one piece of text in one file of a copy of the package; the test then runs on that copy. A mutation
that no longer finds its text, or whose test still passes, is an error. `test_mutations.py` runs a few of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCIENCE = "tests/science"


@dataclass(frozen=True)
class Mutation:
    """One replacement in a file of the package, and the test (a pytest node) that must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


def _of(file: str, *rows: tuple[str, str, str, str]) -> list[Mutation]:
    return [Mutation(name, file, old, new, test) for name, old, new, test in rows]


INFLUENCE, CHOICES = f"{SCIENCE}/test_influence.py", f"{SCIENCE}/test_choices.py"
SOLVERS, ALL = f"{SCIENCE}/test_solvers.py", f"{SCIENCE}/test_solvers_all.py"
ROWS, RESCALED = f"{SCIENCE}/test_rows.py", f"{SCIENCE}/test_rescaled.py"
TRUTHS, STACK, MODULES = f"{SCIENCE}/test_truths.py", f"{SCIENCE}/test_stack.py", f"{SCIENCE}/test_modules.py"
CAPTURED = f"{SCIENCE}/test_captured.py"
LOSSES, ANY, OWN = f"{SCIENCE}/test_losses.py", f"{SCIENCE}/test_any_module.py", f"{SCIENCE}/test_own_study.py"
PROXIMAL, DENSE, AGREE = f"{SCIENCE}/test_proximal.py", f"{SCIENCE}/test_dense.py", "tests/test_evaluation.py"

MUTATIONS = [
    *_of(
        "choices/removals.py",
        ("removal adds its weight", "= -1.0 / self.n", "= 1.0 / self.n", f"{CHOICES}::test_a_removal_takes_one_nth_from_its_members_and_nothing_from_the_others"),
        ("removal takes one of n - 1", "= -1.0 / self.n", "= -1.0 / (self.n - 1)", f"{CHOICES}::test_a_removal_takes_one_nth_from_its_members_and_nothing_from_the_others"),
    ),
    *_of(
        "choices/measured.py",
        ("control is not subtracted from repetitions", "repeats = repeats - self.repeat_controls[:, None]", "pass", f"{CHOICES}::test_a_truth_less_its_control_takes_each_repetitions_own"),
        ("control is added", "changes=self.changes - self.control", "changes=self.changes + self.control", f"{CHOICES}::test_a_truth_less_its_control_takes_each_repetitions_own"),
    ),
    *_of(
        "choices/choosing.py",
        ("top-k by signed score", "np.nan_to_num(losses if choice == \"top_loss\" else np.abs(scores), nan=-1.0)", "np.nan_to_num(losses if choice == \"top_loss\" else scores, nan=-1.0)", f"{CHOICES}::test_training_points_are_ranked_by_absolute_influence_and_come_sorted"),
        ("one too few is chosen", "(-key).argsort(kind=\"stable\")[:count]", "(-key).argsort(kind=\"stable\")[1 : count + 1]", f"{CHOICES}::test_training_points_are_ranked_by_absolute_influence_and_come_sorted"),
        ("subsets leave out what they should keep", "size = max(1, round(share * n))", "size = max(1, round((1 - share) * n))", f"{CHOICES}::test_random_subsets_leave_out_a_share_and_are_the_same_for_all_test_points"),
        ("median of losses is the upper one", "(len(order) - count) // 2", "(len(order) - count + 1) // 2", f"{CHOICES}::test_one_point_of_a_choice"),
    ),
    *_of(
        "estimates/influence.py",
        ("influence has the wrong sign", "removals.sums(slopes / network.train.n)", "removals.sums(-slopes / network.train.n)", f"{INFLUENCE}::test_the_estimate_is_the_first_order_formula_of_linear_regression"),
        ("influence is not divided by n", "removals.sums(slopes / network.train.n)", "removals.sums(slopes)", f"{INFLUENCE}::test_the_estimate_is_the_first_order_formula_of_linear_regression"),
        ("parameters move towards the example", "return -solver(removals.changes()", "return solver(removals.changes()", f"{INFLUENCE}::test_the_parameter_change_tells_the_same_as_the_influence"),
    ),
    *_of(
        "estimates/rescaled.py",
        ("leverage is added", "torch.eye(b.shape[1]).to(b) - b @ solved.mT / network.train.n", "torch.eye(b.shape[1]).to(b) + b @ solved.mT / network.train.n", f"{RESCALED}::test_estimates_beyond_first_order_are_their_formulas"),
        ("leverage is not divided by n", "torch.eye(b.shape[1]).to(b) - b @ solved.mT / network.train.n", "torch.eye(b.shape[1]).to(b) - b @ solved.mT", f"{RESCALED}::test_estimates_beyond_first_order_are_their_formulas"),
        ("the removal's own curvature stays", "left = matrix - some.matrices(network.theta[None], weights, gauss_newton=gauss_newton)[0] / n", "left = matrix.clone()", f"{RESCALED}::test_estimates_beyond_first_order_are_their_formulas"),
        ("second order has the first order's sign", "(first - solve(torch.stack(curved)))", "(first + solve(torch.stack(curved)))", f"{RESCALED}::test_estimates_beyond_first_order_are_their_formulas"),
    ),
    *_of(
        "solvers/base.py",
        ("what is no solution is ok", "residual.max() >= unsolved", "residual.max() > 10 * unsolved", f"{SOLVERS}::test_the_residual_is_relative_and_what_is_no_solution_is_not_called_ok"),
        ("residuals are absolute", "error.norm(dim=1) / v.norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny)", "error.norm(dim=1)", f"{SOLVERS}::test_the_residual_is_relative_and_what_is_no_solution_is_not_called_ok"),
        ("products of solvers are not damped", "self.curvature(v) + self.damping * v", "self.curvature(v)", f"{ALL}::test_decay_on_some_parameters_and_damping_on_all_enter_in_either_precision"),
    ),
    *_of(
        "solvers/dense.py",
        ("the exact solver is not damped", "x = self.shifted(v, self.damping)", "x = self.shifted(v, 0.0)", f"{ALL}::test_decay_on_some_parameters_and_damping_on_all_enter_in_either_precision"),
        ("the exact solver's residual is not damped", "relative(x @ self.matrix + self.damping * x - v, v)", "relative(x @ self.matrix - v, v)", f"{ALL}::test_every_solver_states_the_residual_of_the_full_curvature_of_its_data_set"),
        ("indefinite without its damping", "self.spectrum[0] + self.damping <= 0", "self.spectrum[0] <= 0", f"{ALL}::test_indefinite_means_an_eigenvalue_at_or_below_minus_the_damping"),
    ),
    *_of(
        "objectives/base.py",
        ("biases decay too", "self.decay = (weight_decay * model.is_weight)", "self.decay = (weight_decay * torch.ones_like(model.is_weight))", f"{INFLUENCE}::test_the_estimate_is_the_first_order_formula_of_linear_regression"),
        ("test losses have an L2 term", "return self.like(data, weight_decay=0.0, **changed)", "return self.like(data, **changed)", f"{INFLUENCE}::test_the_estimate_is_the_first_order_formula_of_linear_regression"),
    ),
    *_of(
        "objectives/losses.py",
        ("an ignored label counts", "counted = (y != self.ignore_index).to(z)", "counted = torch.ones_like(z[..., 0])", f"{LOSSES}::test_values_are_those_of_torch_and_derivatives_those_of_autograd"),
        ("Huber curves everywhere", "r.clamp(-self.delta, self.delta), inside.to(z)", "r.clamp(-self.delta, self.delta), torch.ones_like(z)", f"{LOSSES}::test_values_are_those_of_torch_and_derivatives_those_of_autograd"),
        ("class weights do not curve", "scale = scale * self._targets(z, y).sum(-1, keepdim=True)", "pass", f"{LOSSES}::test_values_are_those_of_torch_and_derivatives_those_of_autograd"),
    ),
    *_of(
        "models/module.py",
        ("layers in place reach the data", "(x.clone(),)", "(x,)", f"{ANY}::test_no_layer_in_place_reaches_the_data"),
        ("torch's second derivative of weight norm", "part.forward = partial(_normed_weight, dim=part.dim)", "pass", f"{ANY}::test_influence_is_the_dense_one_by_plain_autograd"),
    ),
    *_of(
        "own/studied.py",
        ("self-influence is not divided by n", ".double().cpu().numpy() / network.train.n", ".double().cpu().numpy()", f"{OWN}::test_scores_are_the_dense_ones"),
        ("a margin that falls is harmful", "better = -sign if self.measurement in MEASUREMENTS else sign", "better = sign", f"{OWN}::test_helpful_examples_are_those_whose_removal_makes_things_worse"),
    ),
    *_of(
        "own/layered.py",
        ("a bias has no gradient", "torch.cat([weights.flatten(1), d.sum(1)], dim=1)", "torch.cat([weights.flatten(1), 0 * d.sum(1)], dim=1)", f"{SCIENCE}/test_layered.py::test_gradients_and_products_are_those_of_autograd"),
        ("what is not understood is believed", "return found if _same(told, expected[rows]) and _same(loss.seen, z[rows]) else None", "return found", f"{SCIENCE}/test_layered.py::test_a_network_that_is_not_understood_is_differentiated_as_any"),
    ),
    *_of(
        "truths/retrained.py",
        ("the control of one's own training is not taken off", "len(points)) - control", "len(points))", f"{OWN}::test_groups_and_masks_are_left_out_as_a_whole_and_one_by_one"),
    ),
    *_of(
        "objectives/proximal.py",
        ("tilt has the wrong sign", "return gradient - self.tilt + self.damping", "return gradient + self.tilt + self.damping", f"{PROXIMAL}::test_damped_hessian_influence_predicts_the_tilted_response_with_slope_one"),
        ("the start decays", "self.tilt = objective.decay * theta", "self.tilt = 0 * theta", f"{PROXIMAL}::test_damped_gauss_newton_influence_predicts_the_response_with_slope_one"),
    ),
    *_of(
        "agreement.py",
        ("correlations are not corrected by a root", "r / reliability**0.5", "r / reliability", f"{ROWS}::test_the_mean_of_many_repetitions_is_more_reliable_than_one_and_the_correction_removes_the_noise"),
        ("ratio of norms is a mean", "ratio = float(np.median(ratios))", "ratio = float(np.mean(ratios))", AGREE),
        ("slope is that of the estimate on the truth", "(e @ t) / (e @ e)", "(e @ t) / (t @ t)", AGREE),
        ("Spearman without ranks", "spearman = _pearson(stats.rankdata(estimate), stats.rankdata(truth))", "spearman = _pearson(estimate, truth)", AGREE),
        ("rows and not seeds are resampled", "groupby([*by, \"_seed\"]", "groupby([*by, \"_seed\", table.index]", AGREE),
        ("reliability is not extended", "np.divide(factor * r, denominator,", "np.divide(r, denominator,", AGREE),
    ),
    *_of(
        "rows.py",
        ("rows of few left-out networks are ok", "REACHED_SHARE = 0.8", "REACHED_SHARE = 0.1", f"{ROWS}::test_a_row_needs_four_fifths_of_its_left_out_networks"),
        ("another point's truth", "true, estimated = truth.on(removals)[:, j], estimate.on(removals)[:, j]", "true, estimated = truth.on(removals)[:, 0], estimate.on(removals)[:, j]", f"{ROWS}::test_each_test_point_is_compared_on_its_own_training_points"),
    ),
    *_of(
        "truths/stacked.py",
        ("the control is the network", "np.where(kept[:, None], lost[1:], np.nan)", "np.where(kept[:, None], lost[1:] - lost[0], np.nan)", f"{TRUTHS}::test_warm_truths_are_the_left_out_descents_one_by_one"),
        ("training anew is counted from its start", "replace(truth.minus_control(), control=", "replace(truth, control=", f"{TRUTHS}::test_training_anew_by_descent_is_that_of_each_start_against_its_own_control"),
        ("what did not converge counts", "norms <= tolerance", "norms >= 0", f"{TRUTHS}::test_left_out_networks_above_the_stated_gradient_norm_are_not_there"),
    ),
    *_of(
        "truths/retrained.py",
        ("repetitions have the same batches", "schedule.seed + AGAIN * r", "schedule.seed", f"{DENSE}::test_the_mean_of_repetitions_has_controls_of_its_own"),
    ),
    *_of(
        "minimise/stack.py",
        ("a masked batch is renormalised", "(weights * (objective.n / schedule.batch))", "(weights * (objective.n / schedule.batch) * 1.05)", f"{STACK}::test_every_member_of_a_stack_is_what_torch_optim_makes_of_it_alone"),
        ("Adam's second moment is not corrected", "/ sqrt(1 - beta_square**count)", "/ 1.0", f"{STACK}::test_every_member_of_a_stack_is_what_torch_optim_makes_of_it_alone"),
    ),
    *_of(
        "minimise/modules.py",
        ("a removal shrinks its batch", ".sum() / len(rows)).backward()", ".sum() / len(kept)).backward()", f"{MODULES}::test_branching_off_the_control_gives_the_numbers_of_full_runs"),
        ("biases of modules decay", "if p.dim() <= 1], \"weight_decay\": 0.0", "if p.dim() <= 1], \"weight_decay\": weight_decay", f"{MODULES}::test_a_batch_of_which_nothing_is_left_still_decays"),
    ),
    *_of(
        "minimise/captured.py",
        ("the control of a GPU's stack leaves out as well", "enumerate(part, start=1)", "enumerate(part, start=0)", f"{CAPTURED}::test_it_retrains_to_the_numbers_of_the_loop"),
        ("the steps of a graph are all the first", "self._rows.copy_(self._batches[step])", "self._rows.copy_(self._batches[0])", f"{CAPTURED}::test_it_retrains_to_the_numbers_of_the_loop"),
    ),
    *_of(
        "minimise/schedule.py",
        ("what is first used later joins sooner", "first[waiting[holds[np.ix_(waiting, rows)].any(axis=1)]] = step", "first[waiting[holds[np.ix_(waiting, rows)].any(axis=1)]] = step + 1", f"{STACK}::test_the_first_use_of_a_removal_is_the_first_batch_that_holds_a_member"),
    ),
]  # fmt: skip


def caught(mutation: Mutation) -> bool:
    """Whether the mutation's test fails on a copy of the package that has it.

    Raises:
        ValueError: its text is not there exactly once or more, or the test could not be run.
    """
    with tempfile.TemporaryDirectory() as place:
        package = Path(place) / "fragile_lib"
        shutil.copytree(ROOT / "fragile_lib", package)  # dates are kept, and with them numba's compiled kernels
        path = package / mutation.file
        text = path.read_text()
        if mutation.old not in text:
            raise ValueError(f"{mutation.name}: {mutation.old!r} is not in {mutation.file}")
        path.write_text(text.replace(mutation.old, mutation.new))
        environment = os.environ | {"PYTHONPATH": place, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        # -P keeps the working directory, which holds the package without the mutation, out of Python's path
        left_out = ["-p", "no:cacheprovider", "-p", "no:nbval"]  # what validates notebooks imports much
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", *left_out, mutation.test]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode not in (0, 1):
            raise ValueError(f"{mutation.name}: {mutation.test} could not be run: {done.stdout[-500:]}")
        return done.returncode == 1


def main(names: list[str]) -> int:
    """Run the named mutations, or all; 1 where one is alive."""
    alive = []
    for mutation in [m for m in MUTATIONS if not names or m.name in names]:
        found = caught(mutation)
        print(f"{'caught' if found else 'ALIVE '}  {mutation.file}: {mutation.name}", flush=True)
        alive += [] if found else [mutation.name]
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
