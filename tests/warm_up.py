"""What most commands import and make once, done in the process that they are forked from.

No figure is drawn: fonts would stay open, and processes that are forked share the place at which an open file is read.
"""

import gc

import composed_before  # noqa: F401
import hydra
import matplotlib._constrained_layout
import matplotlib.backends.backend_agg
import matplotlib.mathtext  # noqa: F401
import plotly.graph_objects
import wandb.apis.public  # this and the next when a run of W&B begins, in half a second
import wandb.sdk.launch  # noqa: F401
from hydra.core.global_hydra import GlobalHydra

from gpt.cli.compose import compose
from gpt.config.groups import CONF

for overrides in ([], ["data=text"], ["data=text", "tracker=wandb"], ["data=text", "cluster=ddp"]):
    compose(overrides)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        GlobalHydra.instance().hydra.get_mode("config", overrides)

page = plotly.graph_objects.Figure()
page.add_scatter(name="a", marker={"size": 3}, line={"width": 1})
page.update_layout(template="plotly_white", margin={"l": 7}, font={"size": 13}, legend={})
page.to_html(full_html=False)

gc.collect()
gc.freeze()  # what is here already is not looked at again in every fork
