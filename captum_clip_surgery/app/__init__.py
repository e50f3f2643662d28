"""The page on which somebody who writes no code sees what CLIP sees: `clip-surgery app`.

Data flows one way: `settings` and `pictures` say what is on the screen, `explaining` and `tabs`
find it, `markup` and `figures` draw it, `code` and `files` hand it on, `page` lays it out with
Gradio and `serving` serves it. Nothing before `page` knows of Gradio.
"""
