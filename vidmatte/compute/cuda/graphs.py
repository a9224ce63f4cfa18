"""Where `Graphed` is found by the modules of this folder."""

from vidmatte.graphs import Graphed as Graphed
