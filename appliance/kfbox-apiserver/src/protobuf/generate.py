#!/usr/bin/env python3
"""Writes generated/messages.txt, the field numbers of Kubernetes' protobuf encoding.

usage: generate.py CHECKOUT_OF_kubernetes/api CHECKOUT_OF_kubernetes/apimachinery > generated/messages.txt

The Go types are read rather than the .proto files, because only they say which field is a pointer (set or not set),
which is inlined, and how it is called in JSON.
"""
import re
import subprocess
import sys

API = [
    "core/v1", "apps/v1", "batch/v1", "autoscaling/v1", "autoscaling/v2", "rbac/v1", "networking/v1", "policy/v1",
    "storage/v1", "scheduling/v1", "coordination/v1", "discovery/v1", "events/v1", "node/v1", "certificates/v1",
    "authentication/v1", "authorization/v1", "admissionregistration/v1", "flowcontrol/v1",
]
SPECIAL = {
    "Time": "time", "MicroTime": "microtime", "Quantity": "quantity", "IntOrString": "intorstring",
    "RawExtension": "raw", "FieldsV1": "fields", "Duration": "duration",
}
SCALARS = {
    "string": "s", "bool": "b", "int": "i", "int8": "i", "int16": "i", "int32": "i", "int64": "i", "uint8": "i",
    "uint16": "i", "uint32": "i", "uint64": "i", "float64": "f",
}


def show(repository, path):
    if repository.endswith(".git") or "mirror" in repository:
        return subprocess.run(["git", "-C", repository, "show", f"HEAD:{path}"], capture_output=True, text=True).stdout
    with open(f"{repository}/{path}") as file:
        return file.read()


def parse(source):
    source = re.sub(r"/\*.*?\*/", "", source, flags=re.S)
    source = "\n".join(line.split("//")[0] if "`" not in line else line for line in source.splitlines())
    structs, names = {}, {}
    for name, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", source, flags=re.S | re.M):
        fields = []
        for line in body.splitlines():
            field = re.match(r"\s*(?:(\w+)\s+)?(\S+)\s+`(.*)`", line)
            if not field:
                continue
            go_type, tags = field.group(2), field.group(3)
            json_tag = re.search(r'json:"([^"]*)"', tags)
            proto_tag = re.search(r'protobuf:"([^"]*)"', tags)
            if not json_tag or not proto_tag or proto_tag.group(1) == "-":
                continue
            json_name, *options = json_tag.group(1).split(",")
            parts = proto_tag.group(1).split(",")
            fields.append((int(parts[1]), json_name, go_type, not json_name, "omitempty" in options or "omitzero" in options))
        structs[name] = fields
    for name, underlying in re.findall(r"^type (\w+) (?!struct|interface|=)(\S+)$", source, flags=re.M):
        names[name] = underlying
    for body in re.findall(r"^type \(\n(.*?)^\)", source, flags=re.S | re.M):
        for name, underlying in re.findall(r"^\s*(\w+)\s+(\S+)$", body, flags=re.M):
            names[name] = underlying
    return structs, names


def main():
    api, machinery = sys.argv[1:3]
    packages = {path: parse(show(api, f"{path}/types.go")) for path in API}
    packages["meta/v1"] = parse(show(machinery, "pkg/apis/meta/v1/types.go"))
    packages["types"] = ({}, {"UID": "string", "NodeName": "string", "NamespacedName": "string"})
    aliases = {"metav1": "meta/v1", "v1": "core/v1", "types": "types", "corev1": "core/v1", "api": "core/v1", "apiv1": "core/v1", "authenticationv1": "authentication/v1"}

    def resolve(package, go_type):
        """(flags, type) of a Go type as seen from a package."""
        if go_type.startswith("*"):
            flags, kind = resolve(package, go_type[1:])
            return flags + "*", kind
        if go_type == "[]byte":
            return "", "y"
        if go_type.startswith("[]"):
            _, kind = resolve(package, go_type[2:])
            return "[]", kind
        if go_type.startswith("map["):
            flags, kind = resolve(package, go_type[go_type.index("]") + 1:])
            return "{}", kind
        prefix, _, name = go_type.rpartition(".")
        if name in SPECIAL and (prefix or package == "meta/v1"):
            return "", SPECIAL[name]
        if name in SCALARS and not prefix:
            return "", SCALARS[name]
        home = package
        if prefix:
            home = aliases[prefix] if not (prefix == "v1" and package != "core/v1") else "core/v1"
        structs, names = packages[home]
        if name in structs:
            return "", f"{home}.{name}"
        if name not in names:
            raise SystemExit(f"{package}: no type {go_type}")
        underlying = names[name]
        if underlying.startswith("[]") and underlying != "[]byte":
            return "", "items"
        return resolve(home, underlying)

    print("# Made by generate.py from the Go types of kubernetes/api and kubernetes/apimachinery.")
    print("# number name type, with * pointer, [] repeated, {} map from string, ^ inlined, ! written even when empty")
    for package, (structs, _) in packages.items():
        for name, fields in structs.items():
            if not fields:
                continue
            print(f"@{package}.{name}")
            for number, json_name, go_type, inline, omit in sorted(fields):
                # Types of alpha versions, which are not served.
                if re.search(r"v\d+(alpha|beta)\d+\.", go_type):
                    continue
                flags, kind = resolve(package, go_type)
                if inline:
                    flags += "^"
                elif not omit:
                    flags += "!"
                print(f"{number} {json_name or '-'} {kind}{' ' + flags if flags else ''}")


main()
