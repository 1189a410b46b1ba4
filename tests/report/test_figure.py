import xml.etree.ElementTree as ElementTree

from recsys_opt.report.figure import figure
from recsys_opt.report.page import CURVES
from recsys_opt.report.svg import Series, chart


def test_a_figure_is_one_file_with_every_plot_inside_it():
    curve = [Series("a & b", [512.0, 2048.0], [30.0, 3000.0], markers=True)]
    plot = chart(curve, x_label="batch", y_label="ns", log_x=True, log_y=True, x_ticks=[512, 2048])
    text = figure("Title <1>", "sub", [("first", plot), ("second", plot), ("third", plot)], [("a & b", 0)])
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("}svg")
    size = [float(root.attrib[key]) for key in ("width", "height")]
    inner = [e for e in root if e.tag.endswith("}svg")]
    assert len(inner) == 3
    places = {(e.attrib["x"], e.attrib["y"]) for e in inner}
    assert len(places) == 3
    for plot_element in inner:
        assert float(plot_element.attrib["x"]) + float(plot_element.attrib["width"]) <= size[0]
        assert float(plot_element.attrib["y"]) + float(plot_element.attrib["height"]) <= size[1]
        words = [e.text for e in plot_element.iter() if e.tag.endswith("}text")]
        assert {"512", "2048", "10", "100", "1k", "10k"} <= set(words)
    assert "Title <1>" in [e.text for e in root if e.tag.endswith("}text")]


def test_every_curve_has_a_colour_and_its_name_within_the_figure():
    names = [(f"a candidate with a long name, {i}", i) for i in range(CURVES)]
    root = ElementTree.fromstring(figure("t", "s", [("first", "<svg/>")], names, columns=1))
    width = float(root.attrib["width"])
    style = next(e.text or "" for e in root if e.tag.endswith("}style"))
    words = {e.text: (float(e.attrib["x"]), float(e.attrib["y"])) for e in root if e.tag.endswith("}text")}
    plot = next(e for e in root if e.tag.endswith("}svg"))
    for name, colour in names:
        x, y = words[name]
        assert x + 6.8 * len(name) <= width
        assert y < float(plot.attrib["y"])
        assert style.count(f"--c{colour}:") == 2  # on light and dark pages
        assert f"polyline.c{colour} " in style
    assert len({words[name] for name, _ in names}) == CURVES
