"""What the Python SDK of Docker does with networks: a line for each step, and what came of it.

`sdk.py URL`: a container `ann` runs, on network `first`.
"""

import json
import sys

import docker
from docker.errors import APIError, DockerException
from docker.types import IPAMConfig, IPAMPool

client = docker.DockerClient(base_url=sys.argv[1])


def step(title, do):
    try:
        outcome = do()
    except APIError as error:
        outcome = f"{type(error).__name__} {error.status_code}: {error.explanation}"
    except DockerException as error:
        outcome = f"{type(error).__name__}: {error}"
    print(json.dumps([title, outcome if isinstance(outcome, str) else json.dumps(outcome, sort_keys=True)]))


def names(networks):
    return sorted(network.name for network in networks)


pool = IPAMPool(subnet="10.66.0.0/24", iprange="10.66.0.128/25", gateway="10.66.0.1", aux_addresses={"a": "10.66.0.7"})
ipam = IPAMConfig(pool_configs=[pool])

step("ping()", lambda: client.ping())
step("version()['Os']", lambda: client.version()["Os"])
step("info()['OSType']", lambda: client.info()["OSType"])
step(
    "networks.create('sdk', driver, ipam, options, labels, attachable, check_duplicate)",
    lambda: client.networks.create(
        "sdk", driver="bridge", ipam=ipam, labels={"by": "sdk"}, check_duplicate=True,
        options={"com.docker.network.driver.mtu": "1400"}, attachable=True,
    ).name,
)
step("networks.create('sdk') again", lambda: client.networks.create("sdk", check_duplicate=True).name)
step("networks.create('inner', internal=True)", lambda: client.networks.create("inner", internal=True).attrs["Internal"])
step("networks.create('x', driver='pigeon')", lambda: client.networks.create("x", driver="pigeon").name)
step("networks.create('x', scope='swarm')", lambda: client.networks.create("x", scope="swarm").name)
step("networks.list()", lambda: names(client.networks.list()))
step("networks.list(names=['sdk'])", lambda: names(client.networks.list(names=["sdk"])))
step("networks.list(filters={'label': 'by=sdk'})", lambda: names(client.networks.list(filters={"label": "by=sdk"})))
step("networks.list(filters={'driver': 'host'})", lambda: names(client.networks.list(filters={"driver": "host"})))
step("networks.list(filters={'type': 'odd'})", lambda: names(client.networks.list(filters={"type": "odd"})))
step("networks.list(greedy=True)", lambda: names(client.networks.list(greedy=True)))

attrs = lambda: client.networks.get("sdk").attrs
step("get().attrs['IPAM']['Config']", lambda: attrs()["IPAM"]["Config"])
step("get().attrs['IPAM']['Options']", lambda: attrs()["IPAM"]["Options"])
step("get().attrs['Options'], ['Labels'], ['Attachable']", lambda: [attrs()[k] for k in ("Options", "Labels", "Attachable")])
step("networks.get('nosuch')", lambda: client.networks.get("nosuch").name)

sdk = client.networks.get("sdk")
ann = lambda: client.containers.get("ann")
on = lambda name: ann().attrs["NetworkSettings"]["Networks"].get(name, {})
step("connect('ann', ipv4_address, aliases)", lambda: sdk.connect("ann", ipv4_address="10.66.0.200", aliases=["www"]))
step("the container's IPAddress", lambda: on("sdk").get("IPAddress"))
step("network.containers", lambda: [sdk.reload(), [c.name for c in sdk.containers]][1])
step("connect('ann') again", lambda: sdk.connect("ann"))
step("connect('nosuch')", lambda: sdk.connect("nosuch"))
step("remove() with a container on it", lambda: sdk.remove())
step("disconnect('ann')", lambda: sdk.disconnect("ann"))
step("disconnect('ann') again", lambda: sdk.disconnect("ann"))
step("disconnect('ann', force=True) again", lambda: sdk.disconnect("ann", force=True))
step("connect('ann', ipv4_address) that is the gateway's", lambda: sdk.connect("ann", ipv4_address="10.66.0.1"))
step("containers.list()", lambda: [c.name for c in client.containers.list()])
step("containers.list(filters={'network': 'first'})", lambda: [c.name for c in client.containers.list(filters={"network": "first"})])
step("containers.get('ann').status", lambda: ann().status)
step("containers.get('nosuch')", lambda: client.containers.get("nosuch").name)
step("prune(filters={'label': 'by=sdk'})", lambda: client.networks.prune(filters={"label": "by=sdk"}))
step("get('inner').remove()", lambda: client.networks.get("inner").remove())
step("get('bridge').remove()", lambda: client.networks.get("bridge").remove())


def events():
    import time

    seen = client.events(since=int(time.time()) - 600, until=int(time.time()) + 1, decode=True, filters={"network": "sdk"})
    return [f"{event['Type']} {event['Action']}" for event in seen]


step("events(since, until, filters)", events)
