"""What most commands do, done once in the process that they are forked from: its caches and late imports stay with it."""

import gc
import io

import composed_before  # noqa: F401
import matplotlib.figure
import plotly.graph_objects
from matplotlib.ticker import EngFormatter

from gpt.cli.compose import compose

for overrides in ([], ["data=text"]):
    compose(overrides)

plot = matplotlib.figure.Figure(layout="constrained")
axes = plot.subplots()
axes.plot([1, 1000], [1, 2], label="a")
axes.xaxis.set_major_formatter(EngFormatter())
axes.set_title("$b$")
axes.legend()
plot.savefig(io.BytesIO(), format="png")

page = plotly.graph_objects.Figure([plotly.graph_objects.Scatter(x=[1], y=[2], name="a")])
page.update_layout(template="plotly_white")
page.to_html(full_html=False)

gc.collect()
gc.freeze()  # what is here already is not looked at again in every fork
