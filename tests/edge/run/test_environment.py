from __future__ import annotations

from relaycore.edge.run.environment import proxy_variables


def test_both_spellings_of_each_variable():
    variables = proxy_variables("127.0.0.1", 1080, {})
    assert variables["http_proxy"] == variables["HTTPS_PROXY"] == "http://127.0.0.1:1080"
    assert variables["ALL_PROXY"] == variables["all_proxy"] == "socks5h://127.0.0.1:1080"


def test_a_list_of_exceptions_from_outside_does_not_hide_our_names():
    assert proxy_variables("127.0.0.1", 1080, {"no_proxy": ".corp.example"})["no_proxy"] == ""


def test_options_for_java_are_added_to():
    options = proxy_variables("127.0.0.1", 1080, {"JAVA_TOOL_OPTIONS": "-Xmx1g"})["JAVA_TOOL_OPTIONS"]
    assert options == "-Xmx1g -DsocksProxyHost=127.0.0.1 -DsocksProxyPort=1080"
