"""``landscape app``: what Streamlit runs. It opens the pages; each is a file in ``views``."""

import sys
from pathlib import Path

import streamlit as st

# Beside the checkout's package, or inside the installed one: either way this folder's parent is where `app` is found.
_PARENT = str(Path(__file__).resolve().parents[1])
if _PARENT not in sys.path:
    sys.path.insert(0, _PARENT)

# First, or the browser would fetch the first page's icon from the network.
icon = str(Path(__file__).with_name("icon.png"))
st.set_page_config(page_title="Landscape", page_icon=icon, layout="wide", initial_sidebar_state=240)

page = st.navigation(
    {
        "Look": [
            st.Page("views/runs.py", title="Runs", icon=":material/list_alt:", default=True),
            st.Page("views/curves.py", title="Curves", icon=":material/show_chart:"),
            st.Page("views/snapshot.py", title="Snapshot", icon=":material/my_location:"),
        ],
        "Understand": [
            st.Page("views/episodes.py", title="Episodes", icon=":material/ssid_chart:"),
            st.Page("views/sharpness.py", title="Sharpness", icon=":material/stacked_line_chart:"),
            st.Page("views/landscape.py", title="Landscape", icon=":material/terrain:"),
        ],
        "Bring and check": [
            st.Page("views/importing.py", title="Import", icon=":material/upload_file:"),
            st.Page("views/reproduction.py", title="Reproduction", icon=":material/fact_check:"),
        ],
    },
    expanded=True,
)
st.set_page_config(page_title=f"{page.title} · Landscape")
page.run()
