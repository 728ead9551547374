"""acme2certifier, a real ACME server, with an authority of its own and a name server that knows one address.

    acme_server.py FOLDER ADDRESS

All names lead to ADDRESS, which the server's validators then visit on ports 80 and 443. Prints the directory's URL when
it listens; FOLDER/ca.pem is the authority's certificate (of the server itself, too). FOLDER/settings.json is read at each
request, so that a test changes it meanwhile:

    life         seconds that certificates are valid
    no_nonces    so many requests of each kind are answered with badNonce, as after the server's restart
    instead      PEM that is handed out in place of each certificate
    hold         a file; requests to finalize wait while it exists
    seen         a file to which each request's path is written
"""

import datetime
import ipaddress
import json
import os
import pathlib
import re
import socketserver
import ssl
import sys
import threading
import time
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import dns.message
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

FOLDER, ADDRESS = pathlib.Path(sys.argv[1]), sys.argv[2]
NOW = datetime.datetime.now(datetime.timezone.utc)


def settings():
    return json.loads((FOLDER / "settings.json").read_text())


def certificate(name, issuer=None):
    """A certificate and its key: an authority's own without `issuer`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - datetime.timedelta(days=1))
    builder = builder.not_valid_after(NOW + datetime.timedelta(days=30))
    if issuer:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
        builder = builder.add_extension(names, critical=False)
    else:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    by, signer = issuer or (None, key)
    return builder.issuer_name(by.subject if by else subject).sign(signer, hashes.SHA256()), key


def write(name, *parts):
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    texts = [p.public_bytes(pem) if isinstance(p, x509.Certificate) else p.private_bytes(pem, *plain) for p in parts]
    (FOLDER / name).write_bytes(b"".join(texts))
    return FOLDER / name


def configure():
    authority = certificate("Lab authority")
    write("ca.pem", authority[0])
    write("ca-key.pem", authority[1])
    write("server.pem", *certificate("127.0.0.1", authority))
    (FOLDER / "signed").mkdir()
    eab = ""
    if (FOLDER / "eab.json").exists():
        module = "acme2certifier.eabhandlers.json_handler"
        eab = f"[EABhandler]\neab_handler_module: {module}\nkey_file: {FOLDER}/eab.json\n"
    allowed = ["lab.example", "*.lab.example", ADDRESS]
    (FOLDER / "acme_srv.cfg").write_text(f"""
[DEFAULT]
debug: False
[DBhandler]
handler: wsgi
dbfile: {FOLDER}/acme.db
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {FOLDER}/ca-key.pem
issuing_ca_cert: {FOLDER}/ca.pem
issuing_ca_crl: {FOLDER}/crl.pem
cert_save_path: {FOLDER}/signed
allowed_domainlist: {json.dumps(allowed)}
[Challenge]
dns_server_list: ["{ADDRESS}"]
[Order]
tnauthlist_support: False
[Renewalinfo]
renewal_force: {settings().get("renew_now", False)}
{eab}""")
    os.environ["ACME_SRV_CONFIGFILE"] = str(FOLDER / "acme_srv.cfg")


class Names(socketserver.BaseRequestHandler):
    """Each name has one address."""

    def handle(self):
        data, sender = self.request
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        asked = question.question[0]
        if asked.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(asked.name, 1, "IN", "A", ADDRESS))
        sender.sendto(answer.to_wire(), self.client_address)


REFUSED = {}


def watched(application):
    """The server as it is, but for what the settings say."""

    def answer(environ, start_response):
        asked, path = settings(), environ["PATH_INFO"]
        environ["wsgi.url_scheme"] = "https"
        if asked.get("seen"):
            with open(asked["seen"], "a", encoding="utf-8") as seen:
                seen.write(f"{environ['REQUEST_METHOD']} {path}\n")
        kind = path.split("/")[2] if path.count("/") > 1 else path
        if environ["REQUEST_METHOD"] == "POST" and REFUSED.setdefault(kind, 0) < asked.get("no_nonces", 0):
            REFUSED[kind] += 1
            body = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            forget(body)
            environ["wsgi.input"] = Again(json.dumps(body).encode())
        while path.endswith("/finalize") and asked.get("hold") and os.path.exists(asked["hold"]):
            time.sleep(0.05)
        parts = application(environ, start_response)
        if asked.get("instead") and path.startswith("/acme/cert/") and b"CERTIFICATE" in parts[0]:
            return [asked["instead"].encode()]
        return parts

    return answer


class Again:
    def __init__(self, data):
        self.data = data

    def read(self, _size):
        return self.data


def forget(body):
    """The server does not know the request's nonce any more; what it answers is its own."""
    from acme2certifier.acme_srv.db_handler import DBstore
    from acme2certifier.acme_srv.helper import b64decode_pad

    text = b64decode_pad(LOGGER, body["protected"])
    nonce = re.search(r'"nonce":\s*"([^"]+)"', text)[1]
    DBstore(False, LOGGER).nonce_delete(nonce)


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


configure()
names = socketserver.ThreadingUDPServer((ADDRESS, 53), Names)
threading.Thread(target=names.serve_forever, daemon=True).start()

from acme2certifier.cahandlers.openssl_ca_handler import CAhandler  # noqa: E402
from acme2certifier.share.acme2certifier_wsgi import LOGGER, application  # noqa: E402


def validity(_handler):
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=settings().get("life", 86400))


CAhandler._certexpiry_date_default = validity
server = make_server("127.0.0.1", 0, watched(application), server_class=Server, handler_class=Quiet)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(FOLDER / "server.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(f"https://127.0.0.1:{server.server_port}/directory", flush=True)
server.serve_forever()
