"""A local page to look at what a run can draw: samples, few steps side by side, walks.

world.py draws, and knows no page; page.py is the page; serve.py hands it to a browser, and nothing
else.
"""
