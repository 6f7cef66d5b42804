"""One self-contained HTML page about a search: Optuna's own plots, and all trials.

The page fetches nothing and runs no script: plotly alone would weigh more than the 3 MB that
Kubeflow's viewer shows well, so the plots are Optuna's of matplotlib, as SVG.
"""

from __future__ import annotations

import base64
import csv
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import optuna

from mal.artifacts import write_text
from mal.automl.leaderboard import leaderboard_csv, short_value
from mal.automl.trial_record import TrialEnd, TrialRecord, best_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

FIGURE_NAME = "validation mIoU"
MIN_TRIALS_TO_DRAW = 2
TEMPLATE = "report.html.j2"

_STYLE: Any = {
    "svg.fonttype": "none",
    "figure.figsize": (9.0, 4.2),
    "font.size": 10,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """A drawn plot as a data URI, or why there is none."""

    title: str
    caption: str
    picture: str
    missing: str = ""


def write_search_report(
    path: Path,
    records: Sequence[TrialRecord],
    study: optuna.Study,
    *,
    has_baseline: bool,
    facts: Mapping[str, str],
    warning: str = "",
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        records: All trials.
        study: That the plots are drawn of.
        has_baseline: Whether trial 0 has the values that were there before.
        facts: What the page is about, by name.
        warning: What stands above everything else.
    """
    best, baseline = best_of(records), records[0] if records and has_baseline else None
    num_complete = sum(record.end is TrialEnd.COMPLETE for record in records)
    header, *rows = csv.reader(io.StringIO(leaderboard_csv(records)))
    content = {
        "title": "AutoML search",
        "warning": warning[:1].upper() + warning[1:],
        "best": best,
        "has_baseline": has_baseline,
        "best_values": _short_values(best),
        "baseline": baseline if baseline and baseline.mean_iou is not None else None,
        "baseline_values": _short_values(baseline),
        "num_trials": len(records),
        "num_epochs": sum(record.num_epochs for record in records),
        "header": header,
        "rows": [[_short_cell(cell) for cell in row] for row in rows],
        "plots": list(_plots(study)) if num_complete >= MIN_TRIALS_TO_DRAW else [],
        "facts": facts,
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mal.automl", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(TEMPLATE).render(content))


def _plots(study: optuna.Study) -> Iterator[Plot]:
    from optuna.visualization import matplotlib as drawing

    def of_figure(draw: Callable[..., Axes]) -> Callable[[], Axes]:
        return lambda: draw(study, target_name=FIGURE_NAME)

    def learning_curves() -> Axes:
        axes = drawing.plot_intermediate_values(study)
        axes.set_xlabel("epoch")
        axes.set_ylabel(FIGURE_NAME)
        return axes

    def importances() -> Axes:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return drawing.plot_param_importances(study, evaluator=evaluator)

    yield _draw(
        "History",
        "Each complete trial, and the best so far.",
        of_figure(drawing.plot_optimization_history),
    )
    yield _draw(
        "Learning curves",
        "Validation mIoU after each epoch; trials that end before the others were ended early.",
        learning_curves,
    )
    yield _draw(
        "Importance of the settings",
        "Which settings tell the best trials from all (PED-ANOVA).",
        importances,
    )
    yield _draw(
        "Parallel coordinates",
        "A line a complete trial, darker where the masks are better.",
        of_figure(drawing.plot_parallel_coordinate),
    )


def _draw(title: str, caption: str, draw: Callable[[], Any]) -> Plot:
    """Draw a plot, or say why there is nothing to see in it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with warnings.catch_warnings(), mpl.rc_context(_STYLE):
        warnings.simplefilter("ignore")  # that it is experimental
        try:
            axes = draw()
            axes.set_title("")  # the page has its own
            figure = axes.figure
            text = io.StringIO()
            figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        except (ValueError, RuntimeError) as error:  # all trials are alike
            return Plot(title, caption, "", str(error))
        finally:
            plt.close("all")
    encoded = base64.b64encode(text.getvalue().encode()).decode()
    return Plot(title, caption, f"data:image/svg+xml;base64,{encoded}")


def _short_values(record: TrialRecord | None) -> dict[str, str]:
    return {key: short_value(value) for key, value in record.values.items()} if record else {}


def _short_cell(text: str) -> str:
    try:
        return short_value(float(text)) if "." in text or "e" in text else text
    except ValueError:
        return text
