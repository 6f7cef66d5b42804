"""A self-contained HTML report of a search: Optuna's plots and all trials.

The page loads nothing and runs no script. plotly alone exceeds the 3 MB that Kubeflow's viewer
handles well, so the plots are Optuna's matplotlib plots, as SVG.
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
from mal.automl.leaderboard import leaderboard_csv
from mal.automl.trial_record import TrialEnd, TrialRecord, best_of
from mal.markdown import short_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

METRIC_NAME = "validation mIoU"
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
    """A plot as a data URI, or the reason why it could not be drawn."""

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
    details: Mapping[str, str],
    warning: str = "",
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        records: All trials.
        study: The study for the plots.
        has_baseline: Whether trial 0 is the baseline.
        details: Settings and data of the search, by title.
        warning: Shown above everything else.
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
        "details": details,
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

    def with_metric_name(draw: Callable[..., Axes]) -> Callable[[], Axes]:
        return lambda: draw(study, target_name=METRIC_NAME)

    def learning_curves() -> Axes:
        axes = drawing.plot_intermediate_values(study)
        axes.set_xlabel("epoch")
        axes.set_ylabel(METRIC_NAME)
        return axes

    def importances() -> Axes:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return drawing.plot_param_importances(study, evaluator=evaluator)

    yield _draw(
        "History",
        "Each complete trial, and the best so far.",
        with_metric_name(drawing.plot_optimization_history),
    )
    yield _draw(
        "Learning curves",
        "Validation mIoU after each epoch; a shorter curve is a trial that was ended early.",
        learning_curves,
    )
    yield _draw(
        "Importance of the settings",
        "How much each setting separates the best trials from all trials (PED-ANOVA).",
        importances,
    )
    yield _draw(
        "Parallel coordinates",
        "One line per complete trial, darker for a higher mIoU.",
        with_metric_name(drawing.plot_parallel_coordinate),
    )


def _draw(title: str, caption: str, draw: Callable[[], Any]) -> Plot:
    """Draw a plot; without enough variation, return the reason instead."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with warnings.catch_warnings(), mpl.rc_context(_STYLE):
        warnings.simplefilter("ignore")  # Optuna marks these plots as experimental
        try:
            axes = draw()
            axes.set_title("")  # the page has a title
            text = io.StringIO()
            axes.figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        except (ValueError, RuntimeError) as error:  # all trials have equal values
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
