"""Names and addresses of nodes."""

import ipaddress

import pytest

from hack.cluster.layout import GATEWAY, NODE_NET, POD_NET, SERVICE_NET, Node


def test_a_node_is_found_by_its_name() -> None:
    assert Node.named("node-7") == Node(number=7)


@pytest.mark.parametrize("name", ["node", "node-", "node-x", "my-node-1", "node-1.local"])
def test_other_names_are_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match="they are called node-0, node-1"):
        Node.named(name)


def test_a_node_that_has_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="numbered from 0 to 200"):
        Node(number=201)


def test_every_node_has_addresses_of_its_own_inside_the_networks() -> None:
    nodes = [Node(number=number) for number in range(201)]

    assert len({node.address for node in nodes} | {GATEWAY}) == 202
    assert all(ipaddress.ip_address(node.address) in ipaddress.ip_network(NODE_NET) for node in nodes)
    assert len({node.pod_net for node in nodes}) == 201
    assert all(ipaddress.IPv4Network(node.pod_net).subnet_of(ipaddress.IPv4Network(POD_NET)) for node in nodes)


def test_the_networks_do_not_overlap() -> None:
    nets = [ipaddress.ip_network(net) for net in (NODE_NET, POD_NET, SERVICE_NET)]

    assert not any(a.overlaps(b) for a in nets for b in nets if a is not b)


def test_neighbours_lie_in_different_zones() -> None:
    assert Node(number=1).zone != Node(number=2).zone


def test_the_kernel_takes_the_name_of_every_cable() -> None:
    assert len(Node(number=200).cable) < 16
