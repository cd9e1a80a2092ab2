"""ZNN's text format."""

import pytest

from znni.errors import FormatError
from znni.formats.znn_text import read_znn
from znni.layers import LINEAR, Activation, Conv, MaxPool, Softmax
from znni.zoo import networks


def nodes(name, size, kind="transfer", function="rectify_linear", **more):
    options = {"type": kind, "size": size, **more}
    if kind == "transfer":
        options["function"] = function
    return "\n".join([f"nodes {name}", *(f"{key} {value}" for key, value in options.items())]) + "\n\n"


def edges(name, source, target, kind="conv", **more):
    options = {"type": kind, "input": source, "output": target, **more}
    return "\n".join([f"edges {name}", *(f"{key} {value}" for key, value in options.items())]) + "\n\n"


INPUT = nodes("input", 1, "input")
CONV = edges("conv1", "input", "n1", size="1,3,3", stride="1,1,1", init="msra", eta="0.01")
SMALL = INPUT + CONV + nodes("n1", 4)


def n4() -> str:
    text, previous = INPUT, "input"
    for number, (kernel, size) in enumerate([(4, 48), (5, 48), (4, 48), (4, 48), (3, 200)], 1):
        text += edges(f"conv{number}", previous, f"nconv{number}", size=f"1,{kernel},{kernel}", stride="1,1,1")
        text += nodes(f"nconv{number}", size)
        previous = f"nconv{number}"
        if number < 5:
            text += edges(f"pool{number}", previous, f"npool{number}", "max_filter", size="1,2,2", stride="1,2,2")
            text += nodes(f"npool{number}", size, "sum")
            previous = f"npool{number}"
    text += edges("dropout", previous, "ndropout", "dropout", ratio="0.5") + nodes("ndropout", 200, "sum")
    text += edges("conv6", "ndropout", "output", size="1,1,1", stride="1,1,1")
    return text + nodes("output", 2, function="linear")


@pytest.fixture
def read(tmp_path):
    """Reads a file of the given text or bytes."""

    def read(content):
        path = tmp_path / "net.znn"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_znn(path)

    return read


def layer_after(read, text):
    return read(SMALL + text).nodes[-1].layer


def test_n4_is_the_zoo_s_but_for_the_softmax(read):
    description = read(n4())
    assert tuple(node.layer for node in description.nodes) == networks()["n4"].layers[:-1]
    assert [node.name for node in description.nodes][-3:] == ["pool4", "conv5", "conv6"]
    assert description.weights is None
    assert description.in_channels == 1


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({"function": "linear"}, LINEAR),
        ({"function": "linear", "function_args": "1.000000,0.000000"}, LINEAR),
        ({"function": "rectify_linear"}, Activation("relu")),
        ({"function": "logistics"}, Activation("sigmoid")),
        ({"function": "forward_logistics"}, Activation("sigmoid")),
        ({"function": "tanh"}, Activation("tanh", 1.0, 1.0)),
        ({"function": "tanh", "function_args": "1.7159,0.6666"}, Activation("tanh", 1.7159, 0.6666)),
    ],
)
def test_functions(read, options, activation):
    (node,) = read(INPUT + CONV + nodes("n1", 4, **options)).nodes
    assert node.layer == Conv(4, (1, 3, 3), activation=activation)


@pytest.mark.parametrize(
    ("kind", "options", "layer"),
    [
        ("max_filter", {"size": "1,2,2", "stride": "1,2,2"}, MaxPool((1, 2, 2), (1, 2, 2))),
        ("max_filter", {"size": "2,2,2", "stride": "1,2,2"}, MaxPool((2, 2, 2), (1, 2, 2))),
        ("max_filter", {"size": "2,2,2"}, MaxPool((2, 2, 2), (1, 1, 1))),
        ("max_pool", {"size": "1,2,2", "stride": "1,2,2"}, MaxPool((1, 2, 2), (1, 2, 2))),
        ("max_pool", {"size": "1,3,3"}, MaxPool((1, 3, 3), (1, 3, 3))),
        ("softmax", {}, Softmax()),
    ],
)
def test_edges_other_than_convolutions(read, kind, options, layer):
    assert layer_after(read, edges("next", "n1", "n2", kind, **options) + nodes("n2", 4, "sum")) == layer


@pytest.mark.parametrize(
    ("kind", "options", "target"),
    [("dropout", {"ratio": "0.5"}, "sum"), ("dummy", {}, "sum"), ("crop", {"offset": "0,0,0"}, "sum"),
     ("maxout", {}, "maxout")],
)  # fmt: skip
def test_edges_that_change_nothing(read, kind, options, target):
    description = read(SMALL + edges("next", "n1", "n2", kind, **options) + nodes("n2", 4, target))
    assert [node.name for node in description.nodes] == ["conv1"]


def test_sums_after_convolutions_have_neither_bias_nor_function(read):
    description = read(INPUT + CONV + nodes("n1", 4, "sum", function="rectify_linear"))
    assert description.nodes[0].layer.activation == LINEAR
    assert description.unbiased == {"conv1"}
    assert not read(SMALL).unbiased


def test_order_blank_lines_and_comments_do_not_matter(read):
    text = "# a comment\r\n" + nodes("n1", 4) + CONV.replace("\n\n", "\n") + INPUT.replace("\n", "  # why\r\n")
    assert read(text).nodes == read(SMALL).nodes


def test_names_that_are_taken_are_avoided(read):
    text = INPUT + edges("input", "input", "a", size="1,1,1") + nodes("a", 2)
    text += edges("recombine", "a", "b", size="1,1,1") + nodes("b", 2)
    description = read(text)
    assert [node.name for node in description.nodes] == ["input_edges", "recombine_edges"]
    assert description.nodes[1].inputs == ("input_edges",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty; a .znn file holds nodes and edges blocks"),
        ("size 3\n" + SMALL, "line 1: 'size' stands before any nodes or edges block"),
        ("nodes\n", "line 1: expected a key and a value, got 'nodes'"),
        (SMALL + "size", "line 19: expected a key and a value, got 'size'"),
        (SMALL + nodes("n1", 4), "nodes n1 are defined a second time"),
        (SMALL.replace("eta 0.01", "size 1,1,1"), "edges conv1 have a second size"),
        (CONV + nodes("n1", 4), "edges conv1 has the input input, which no nodes block defines"),
        (INPUT + CONV, "line 5: edges conv1 has the output n1, which no nodes block defines"),
        (nodes("n1", 4), "has no nodes of type input"),
        (INPUT, "holds no layers after its input input"),
        (SMALL + nodes("input2", 1, "input"), "nodes input2 is a second input beside input"),
        (SMALL + nodes("lost", 4), "nodes lost cannot be reached from the input input"),
        (SMALL.replace("type transfer\n", ""), "nodes n1 has no type"),
        (SMALL.replace("type transfer", "type product"), "nodes n1 has the unknown type 'product'"),
        (SMALL.replace("type conv\n", ""), "edges conv1 has no type"),
        (SMALL.replace("type conv", "type deconv"), "edges conv1 has the unknown type 'deconv'; known are conv"),
        (SMALL.replace("input input\n", ""), "edges conv1 has no input"),
        (SMALL.replace("size 1,3,3\n", ""), "edges conv1 has no size"),
        (SMALL.replace("1,3,3", "1,3,x"), "each number of the size of .*line 5: edges conv1 must be a positive"),
        (SMALL.replace("stride 1,1,1", "stride 1,2,2"), "edges conv1 has stride 1,2,2; a conv must have stride 1,1,1"),
        (SMALL.replace("size 4", "size -4"), "the size of .*nodes n1 must be a positive integer"),
        (SMALL.replace("function rectify_linear\n", ""), "nodes n1 has no function"),
        (SMALL.replace("rectify_linear", "soft_sign"), "nodes n1 has the unknown function 'soft_sign'"),
        (INPUT + CONV + nodes("n1", 4, function="tanh", function_args="1"), "function_args of .* must be two numbers"),
        (INPUT + CONV + nodes("n1", 4, function="tanh", function_args="a,b"), "must be two numbers, got 'a,b'"),
        (INPUT + CONV + nodes("n1", 4, function="tanh", function_args="1,nan"), "must be two numbers, got '1,nan'"),
        (INPUT + CONV + nodes("n1", 4, function="linear", function_args="2,1"), "slope and intercept; fold them"),
        (INPUT + CONV + nodes("n1", 4, "maxout"), "n1 of type maxout cannot end conv edges"),
        (SMALL + edges("loop", "n1", "n1", size="1,1,1"), "nodes n1 is fed by several edges .conv1 and loop."),
        (SMALL + edges("back", "n1", "input", size="1,1,1"), "nodes input is the input, yet edges back end in it"),
        (
            SMALL + edges("skip", "input", "n2", size="1,1,1") + nodes("n2", 1),
            "line 1: nodes input feeds several edges .conv1 and skip.; only networks that are chains",
        ),
        (
            SMALL + edges("next", "n1", "n2", "max_filter", size="1,2,2") + nodes("n2", 5, "sum"),
            "edges next joins 4 nodes .n1. to 5 .n2.; max_filter needs as many",
        ),
        (
            SMALL + edges("next", "n1", "n2", "max_filter", size="1,2,2") + nodes("n2", 4),
            "nodes n2 adds a bias and a function after max_filter edges; that is read only after conv",
        ),
        (SMALL + edges("next", "n1", "n2", "split") + nodes("n2", 4, "sum"), "edges next has the unknown type 'split'"),
        (
            SMALL + edges("next", "n1", "n2", "crop", offset="1,1,1") + nodes("n2", 4, "sum"),
            "edges next crops, which matters only where paths of a graph meet",
        ),
    ],
)
def test_what_is_wrong_is_named(read, tmp_path, text, says):
    with pytest.raises(FormatError, match=says) as error:
        read(text)
    assert str(tmp_path / "net.znn") in str(error.value)
    assert "\n" not in str(error.value)


def test_two_inputs_summed_name_the_node(read):
    text = SMALL + edges("a", "n1", "n2", size="1,1,1") + edges("b", "n1", "n2", size="1,1,1") + nodes("n2", 4)
    with pytest.raises(FormatError, match="nodes n1 feeds several edges"):
        read(text)


def test_truncation_never_passes_unnoticed_within_a_block(read):
    text = n4()
    for end in range(text.index("edges conv6") + 1, text.rindex("function linear")):
        with pytest.raises(FormatError):
            read(text[:end])
