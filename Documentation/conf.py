# SPDX-License-Identifier: GPL-2.0-only
"""Sphinx: how `make docs` builds this folder. The kernel has a conf.py of its own for what lies in virt/kvm."""

project = "kvm-clock-guest"

# As the kernel's: a literal block is not Python unless marked as such, and -- is not a dash.
highlight_language = "none"
smartquotes_action = "q"
# A name that leads nowhere is a warning, hence an error.
nitpicky = True

html_theme = "alabaster"
html_static_path = ["static"]
html_show_copyright = False
# As wide as the window, down to a phone's.
html_theme_options = {"page_width": "auto", "body_min_width": "0", "body_max_width": "52em"}
