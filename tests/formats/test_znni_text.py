"""ZNNi's text format."""

import pytest

from znni.errors import FormatError
from znni.formats.znni_text import read_znni
from znni.layers import Conv, MaxFilter, Maxout, MaxPool
from znni.zoo import networks

N337 = """INPUTS:1, LAYERS:10
CONV 2,2,2 80
POOL 2,2,2
CONV 3,3,3 80
POOL 2,2,2
CONV 3,3,3 80
POOL 2,2,2
CONV 3,3,3 80
CONV 3,3,3 80
CONV 3,3,3 80
CONV 3,3,3 3
"""


@pytest.fixture
def read(tmp_path):
    """Reads a file of the given text or bytes."""

    def read(content):
        path = tmp_path / "net.znni"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_znni(path)

    return read


def test_n337_is_the_zoo_s(read):
    description = read(N337)
    assert tuple(node.layer for node in description.nodes) == networks()["n337"].layers
    assert description.in_channels == 1
    assert description.weights is None


def test_every_kind_of_layer(read):
    layers = [node.layer for node in read("INPUTS:3, LAYERS:4\nCONV 1,2,3 6\nMAXOUT 3\nFOOL 2,2,1\nPOOL 1,3,3").nodes]
    assert [layer.kind for layer in layers] == ["conv", "maxout", "max_filter", "max_pool"]
    assert layers[0].kernel == (1, 2, 3)
    assert layers[1:] == [Maxout(3), MaxFilter((2, 2, 1)), MaxPool((1, 3, 3), (1, 3, 3))]


def test_files_of_2d_networks_have_two_numbers(read):
    conv, pool = (node.layer for node in read("INPUTS:3, LAYERS:2\nCONV 4,5 32\nPOOL 2,2").nodes)
    assert (conv.kernel, pool) == ((1, 4, 5), MaxPool((1, 2, 2), (1, 2, 2)))


def test_blank_lines_comments_and_line_ends_do_not_matter(read):
    text = "\ufeff# a network\r\nINPUTS : 1 , LAYERS : 1\r\n\r\n  CONV 3,3,3 4   # the only one\r\n"
    (node,) = read(text).nodes
    assert isinstance(node.layer, Conv)
    assert node.name == "1_conv"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty; a .znni file begins with"),
        ("CONV 3,3,3 80", "line 1: expected INPUTS:<n>, LAYERS:<m>, got 'CONV 3,3,3 80'"),
        ("INPUTS:1, LAYERS:two\nCONV 3,3,3 80", "line 1: expected INPUTS"),
        ("INPUTS:0, LAYERS:1\nCONV 3,3,3 80", "line 1: INPUTS must be a positive integer"),
        ("INPUTS:1, LAYERS:0", "line 1: LAYERS must be a positive integer"),
        (N337[: N337.index("CONV 3,3,3 3\n")], "promises 10 layers, but the file holds 9"),
        (N337 + "POOL 2,2,2", "promises 10 layers, but the file holds 11"),
        (N337[:-4], "line 11: the size of CONV must be z,y,x|line 11: expected CONV z,y,x outputs"),
        ("INPUTS:1, LAYERS:1\nCONF 3,3,3 80", "line 2: unknown layer 'CONF'; known are CONV, POOL, FOOL, MAXOUT"),
        ("INPUTS:1, LAYERS:1\nCONV 3,3,3", "line 2: expected CONV z,y,x outputs, got 'CONV 3,3,3'"),
        ("INPUTS:1, LAYERS:1\nPOOL 2,2,2 80", "line 2: expected POOL z,y,x, got"),
        ("INPUTS:1, LAYERS:1\nCONV 3,3,3,3 80", "line 2: the size of CONV must be z,y,x .or y,x., got '3,3,3,3'"),
        ("INPUTS:1, LAYERS:1\nCONV 3,0,3 80", "line 2: the size of CONV must be a positive|each number of .*, got '0'"),
        ("INPUTS:1, LAYERS:1\nCONV 3,-3,3 80", "got '-3'"),
        ("INPUTS:1, LAYERS:1\nCONV 3,3,nan 80", "got 'nan'"),
        ("INPUTS:1, LAYERS:1\nCONV 3,3,3 1e3", "line 2: the outputs of CONV must be a positive integer"),
        ("INPUTS:1, LAYERS:1\nCONV 3,3,3 " + "9" * 5000, "outputs of CONV must be a positive integer below a million"),
        ("INPUTS:1, LAYERS:2\nCONV 3,3,3 4\nMAXOUT 3", "line 3: MAXOUT 3 does not divide 4 channels"),
        ("INPUTS:1, LAYERS:1\nMAXOUT 2.5", "line 2: the group of MAXOUT must be a positive integer"),
        (b"\x89HDF\r\n\x1a\n\xff\xfe", "is not a text file: byte 0 is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named(read, tmp_path, content, says):
    with pytest.raises(FormatError, match=says) as error:
        read(content)
    assert str(tmp_path / "net.znni") in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.znni", tmp_path):
        with pytest.raises(FormatError, match=f"cannot read {path}: "):
            read_znni(path)


def test_a_file_that_is_no_description_is_not_read_whole(read):
    with pytest.raises(FormatError, match="larger than the 16777216 bytes"):
        read(b"#" * (17 << 20))
