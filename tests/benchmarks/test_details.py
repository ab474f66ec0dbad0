"""The tables beside the figures."""

from benchmarks.q_diffusion.details import movement, ranges_table, trajectory_table
from benchmarks.q_diffusion.results import Result


def test_the_trajectory_at_five_calls_ends_at_the_last() -> None:
    trail = {"timesteps": [900.0 - 100 * call for call in range(10)]}
    trail |= {"x_mse": [0.01 * call for call in range(10)], "eps_mse": [0.5] * 10}
    row = Result({"row": "r", "labels": {"method": "q-diffusion", "bits": "4"}, "metrics": {"trail": trail}})
    head, _, first, second, _ = trajectory_table({"r": row})
    assert head.count("call ") == 5 and "call 9 (t = 0)" in head and "call 0" not in head
    assert first.startswith("| Q-Diffusion, 4 bits: x_t | 2.00e-02 |") and first.endswith("| 9.00e-02 |")
    assert second.count("5.00e-01") == 5
    assert trajectory_table({}) == []


def test_the_range_of_every_layer_with_its_role_where_the_row_has_it() -> None:
    layer = {"minimum": [-4.0, -5.0], "low": [-1.0, -2.0], "high": [1.0, 4.0], "maximum": [3.0, 9.0]}
    metrics = {"ranges": {"layers": {"conv_in": layer}, "quantiles": [0.001, 0.999], "timesteps": [9.0, 1.0]}}
    assert movement(layer) == 3.0
    lines = ranges_table({"float": Result({"metrics": metrics})})
    assert "| `conv_in` | - | -5.00 | 9.00 | 3.0 |" in lines
    assert lines[0] == "<details>" and lines[-2] == "</details>"
    named = Result({"metrics": {**metrics, "roles": {"conv_in": "conv_in"}}})
    assert "| `conv_in` | conv_in | -5.00 | 9.00 | 3.0 |" in ranges_table({"float": named})
    assert ranges_table({}) == []
