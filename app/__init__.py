"""The dashboard: Streamlit pages over a store, thin over `landscape.store`, `landscape.plots` and `landscape.analysis`.

Everything that reads, computes or draws is free of Streamlit (``index``, ``reader``, ``curve_figures``,
``run_figures``, ``logs``, ``jobs``, ``exports``); ``frame`` and ``charts`` put it on pages, one file each in ``views``.
"""
