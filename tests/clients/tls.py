"""TLS of the gateway as Python's clients see it. `tls.py trusted CA` and `tls.py reload CERTIFICATE KEY`.

Environment: KFBOX_URL, and for `trusted` KFBOX_TOKEN and KFBOX_NAMESPACE.
"""

import http.client
import os
import ssl
import subprocess
import sys
import time
from urllib.parse import urlsplit

URL = os.environ["KFBOX_URL"]
ADDRESS = urlsplit(URL)


def trusted(ca):
    import kfp
    import requests

    assert requests.get(f"{URL}/healthz", verify=ca, timeout=10).text == "ok\n"
    try:
        requests.get(f"{URL}/healthz", timeout=10)
    except requests.exceptions.SSLError:
        pass
    else:
        raise AssertionError("trusted without the authority")
    client = kfp.Client(host=f"{URL}/pipeline", existing_token=os.environ["KFBOX_TOKEN"], ssl_ca_cert=ca)
    client.list_experiments(namespace=os.environ["KFBOX_NAMESPACE"])


def make(certificate, key, name):
    """A new pair, in place as a renewal leaves it: one file after the other."""
    for path in (certificate, key):
        open(path + ".new", "w").close()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        + ["-keyout", key + ".new", "-out", certificate + ".new"],
        check=True,
        capture_output=True,
    )


def put(path):
    os.rename(path + ".new", path)


def connect(certificate):
    context = ssl.create_default_context(cafile=certificate)
    return http.client.HTTPSConnection(ADDRESS.hostname, ADDRESS.port, timeout=10, context=context)


def ask(connection):
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"ok\n")


def wait_for(certificate):
    """Until a new connection gets this certificate."""
    ends = time.monotonic() + 20
    while True:
        try:
            connection = connect(certificate)
            ask(connection)
            return connection
        except ssl.SSLCertVerificationError:
            assert time.monotonic() < ends, "the new certificate is not served"
            time.sleep(0.1)


def reload(certificate, key):
    old = os.path.join(os.path.dirname(certificate), "old.crt")
    with open(certificate) as source, open(old, "w") as copy:
        copy.write(source.read())
    standing = connect(old)
    ask(standing)
    first = standing.sock.getpeercert(binary_form=True)

    make(certificate, key, "second")
    put(certificate)
    # Half of a renewal: certificate and key do not fit. For longer than the box waits between looks, nothing changes.
    for _ in range(15):
        ask(connect(old))
        time.sleep(0.1)
    put(key)
    wait_for(certificate)
    local = standing.sock
    ask(standing)
    assert standing.sock is local, "the connection was dropped"
    assert standing.sock.getpeercert(binary_form=True) == first


if __name__ == "__main__":
    {"trusted": trusted, "reload": reload}[sys.argv[1]](*sys.argv[2:])
    print("ok")
