"""What most commands import and make once, done in the process that they are forked from.

No figure is drawn: fonts would stay open, and processes that are forked share the place at which an open file is read.
"""

import gc

import composed_before  # noqa: F401
import matplotlib._constrained_layout
import matplotlib.backends.backend_agg
import matplotlib.mathtext  # noqa: F401
import plotly.graph_objects

from gpt.cli.compose import compose

for overrides in ([], ["data=text"]):
    compose(overrides)

page = plotly.graph_objects.Figure()
page.add_scatter(name="a", marker={"size": 3}, line={"width": 1})
page.update_layout(template="plotly_white", margin={"l": 7}, font={"size": 13}, legend={})
page.to_html(full_html=False)

gc.collect()
gc.freeze()  # what is here already is not looked at again in every fork
