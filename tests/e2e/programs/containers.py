"""The testcontainers scenario: what the library does for the tests of its users.

argv: the image of busybox, the label of the case, whether containers are to be VMs.
"""

import http.client
import pathlib
import sys
import tempfile

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import HttpWaitStrategy, LogMessageWaitStrategy, PortWaitStrategy

image, label, machine = sys.argv[1], sys.argv[2], sys.argv[3] == "hyperv"
own_kernel = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def container(command):
    return DockerContainer(image).with_kwargs(labels={"e2e": label}).with_command(command)


def page(one, path):
    connection = http.client.HTTPConnection(
        one.get_container_host_ip(), int(one.get_exposed_port(80)), timeout=60
    )
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode().strip()


with tempfile.TemporaryDirectory() as directory, Network() as network:
    host = pathlib.Path(directory)
    (host / "bound").write_text("bound\n")
    copied = host / "copied.txt"
    copied.write_text("copied\n")
    script = (
        "mkdir -p /www; echo $WORD > /www/index.html; cp /bind/bound /www/; "
        "echo ready to serve; exec httpd -f -v -p 80 -h /www"
    )
    web = (
        container(["sh", "-c", script])
        .with_env("WORD", "served")
        .with_exposed_ports(80)
        .with_volume_mapping(str(host), "/bind", "ro")
        .with_network(network)
        .with_network_aliases("www")
        .with_copy_into_container(copied, "/early.txt")
        .waiting_for(LogMessageWaitStrategy("ready to serve").with_startup_timeout(120))
    )
    with web:
        PortWaitStrategy(80).with_startup_timeout(120).wait_until_ready(web)
        HttpWaitStrategy(80).for_status_code(200).with_startup_timeout(120).wait_until_ready(web)
        assert page(web, "/") == (200, "served"), page(web, "/")
        assert page(web, "/bound") == (200, "bound")
        stdout, _ = web.get_logs()
        assert b"ready to serve" in stdout, stdout

        done = web.exec(["sh", "-c", "echo out; exit 3"])
        assert (done.exit_code, done.output) == (3, b"out\n"), done
        kernel = web.exec("cat /proc/sys/kernel/random/boot_id").output.decode().strip()
        assert (kernel != own_kernel) == machine, (kernel, own_kernel)

        early = web.exec("cat /early.txt")
        assert (early.exit_code, early.output) == (0, b"copied\n"), early
        web.copy_into_container(copied, "/www/copied.txt")
        assert page(web, "/copied.txt") == (200, "copied")
        web.exec(["sh", "-c", "echo made > /www/made"])
        web.copy_from_container("/www/made", host / "made")
        assert (host / "made").read_text() == "made\n"

        ask = "until nslookup www; do sleep 0.2; done; echo found; sleep 1000"
        with container(["sh", "-c", ask]).with_network(network) as other:
            LogMessageWaitStrategy("found").with_startup_timeout(120).wait_until_ready(other)
            address = web.get_wrapped_container()
            address.reload()
            address = address.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
            done = other.exec(f"wget -qO- http://{address}/")
            assert (done.exit_code, done.output) == (0, b"served\n"), done
        client = web.get_docker_client().client
        ids = [one.id for one in client.containers.list(filters={"label": f"e2e={label}"})]
        assert ids == [web.get_wrapped_container().id], ids

assert client.containers.list(all=True, filters={"label": f"e2e={label}"}) == []
assert client.networks.list(names=[network.name]) == []
print("all as expected")
