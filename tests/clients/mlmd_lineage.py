"""The ml-metadata client, as it comes, against the metadata store.

Usage: mlmd_lineage.py HOST:PORT [--stranger HOST:PORT] [--ca FILE --cert FILE --key FILE]
       mlmd_lineage.py --reference

--stranger is an address at which the same store takes the caller for someone of another namespace; --reference runs the
same checks against ML Metadata's own in-memory store, to show that they say what upstream does. Every check is an
assertion; exit status 0 and a last line "ok" mean that all held. Needs ml-metadata.
"""

import argparse
import uuid

from ml_metadata import errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as pb

RUN = uuid.uuid4().hex[:8]
ListOptions = metadata_store.ListOptions


def connect(address, arguments):
    config = pb.MetadataStoreClientConfig()
    config.host, port = address.rsplit(":", 1)
    config.port = int(port)
    config.client_timeout_sec = 20
    if arguments.ca:
        config.ssl_config.custom_ca = open(arguments.ca).read()
        config.ssl_config.client_key = open(arguments.key).read()
        config.ssl_config.server_cert = open(arguments.cert).read()
    return metadata_store.MetadataStore(config)


def refused(error, call, *arguments, **named):
    try:
        got = call(*arguments, **named)
    except error as raised:
        return raised
    raise AssertionError(f"{call.__name__} was not refused with {error.__name__} but answered {got!r}")


class Lineage:
    def __init__(self, store):
        self.store = store

    def types(self):
        s = self.store
        self.dataset = s.put_artifact_type(
            pb.ArtifactType(name=f"system.Dataset-{RUN}", properties={"rows": pb.INT, "split": pb.STRING})
        )
        self.container = s.put_execution_type(
            pb.ExecutionType(name=f"system.ContainerExecution-{RUN}", properties={"state": pb.STRING})
        )
        self.pipeline = s.put_context_type(pb.ContextType(name=f"system.Pipeline-{RUN}"))
        self.run = s.put_context_type(pb.ContextType(name=f"system.PipelineRun-{RUN}"))
        name = f"system.Dataset-{RUN}"
        assert s.put_artifact_type(
            pb.ArtifactType(name=name, properties={"rows": pb.INT, "split": pb.STRING})
        ) == self.dataset
        more = pb.ArtifactType(name=name, properties={"extra": pb.DOUBLE})
        refused(errors.AlreadyExistsError, s.put_artifact_type, more)
        refused(errors.AlreadyExistsError, s.put_artifact_type, more, can_add_fields=True)
        assert s.put_artifact_type(more, can_add_fields=True, can_omit_fields=True) == self.dataset
        other = pb.ArtifactType(name=name, properties={"rows": pb.STRING})
        refused(errors.AlreadyExistsError, s.put_artifact_type, other, can_add_fields=True, can_omit_fields=True)
        refused(errors.InvalidArgumentError, s.put_artifact_type, pb.ArtifactType())
        refused(
            errors.InvalidArgumentError, s.put_artifact_type, pb.ArtifactType(name="U", properties={"x": pb.UNKNOWN})
        )
        stored = s.get_artifact_type(name)
        assert stored.id == self.dataset and set(stored.properties) == {"rows", "split", "extra"}
        refused(errors.NotFoundError, s.get_artifact_type, "nothing")
        refused(errors.NotFoundError, s.get_execution_type, "nothing")
        assert self.dataset in [t.id for t in s.get_artifact_types()]
        assert [t.id for t in s.get_artifact_types_by_id([self.dataset, 999999])] == [self.dataset]
        versioned = s.put_artifact_type(pb.ArtifactType(name=name, version="2"))
        assert versioned != self.dataset and s.get_artifact_type(name, "2").id == versioned

    def artifacts(self):
        s, t = self.store, self.dataset
        refused(errors.InvalidArgumentError, s.put_artifacts, [pb.Artifact()])
        refused(errors.NotFoundError, s.put_artifacts, [pb.Artifact(type_id=999999)])
        wrong = {"nowhere": pb.Value(int_value=1)}
        refused(errors.InvalidArgumentError, s.put_artifacts, [pb.Artifact(type_id=t, properties=wrong)])
        wrong = {"rows": pb.Value(string_value="1")}
        refused(errors.InvalidArgumentError, s.put_artifacts, [pb.Artifact(type_id=t, properties=wrong)])
        refused(errors.InvalidArgumentError, s.put_artifacts, [pb.Artifact(id=999999, type_id=t)])
        artifact = pb.Artifact(
            type_id=t,
            name=f"a-{RUN}",
            uri=f"s3://bucket/{RUN}/a",
            external_id=f"e-{RUN}",
            state=pb.Artifact.LIVE,
            properties={"rows": pb.Value(int_value=7), "split": pb.Value(string_value="train")},
            custom_properties={"note": pb.Value(string_value="it's \"odd\""), "ok": pb.Value(bool_value=True)},
        )
        artifact.custom_properties["shape"].struct_value.update({"a": [1, {"b": None}]})
        (self.a,) = s.put_artifacts([artifact])
        (stored,) = s.get_artifacts_by_id([self.a, 999999])
        assert stored.properties == artifact.properties and stored.custom_properties == artifact.custom_properties
        assert stored.type == f"system.Dataset-{RUN}" and stored.state == pb.Artifact.LIVE
        assert stored.create_time_since_epoch > 0
        refused(errors.AlreadyExistsError, s.put_artifacts, [pb.Artifact(type_id=t, name=f"a-{RUN}")])
        refused(errors.AlreadyExistsError, s.put_artifacts, [pb.Artifact(type_id=t, external_id=f"e-{RUN}")])
        # All or nothing: the first of these must not stay behind.
        batch = [pb.Artifact(type_id=t, name=f"b-{RUN}"), pb.Artifact(type_id=t, name=f"a-{RUN}")]
        refused(errors.AlreadyExistsError, s.put_artifacts, batch)
        assert s.get_artifact_by_type_and_name(f"system.Dataset-{RUN}", f"b-{RUN}") is None
        assert s.get_artifact_by_type_and_name(f"system.Dataset-{RUN}", f"a-{RUN}").id == self.a
        assert s.get_artifact_by_type_and_name("nothing", "x") is None
        assert [x.id for x in s.get_artifacts_by_uri(f"s3://bucket/{RUN}/a")] == [self.a]
        assert [x.id for x in s.get_artifacts_by_external_ids([f"e-{RUN}"])] == [self.a]
        refused(errors.NotFoundError, s.get_artifacts_by_external_ids, ["nothing"])
        assert [x.id for x in s.get_artifacts_by_type(f"system.Dataset-{RUN}")] == [self.a]
        assert s.get_artifacts_by_type("nothing") == []
        found, kinds = s.get_artifacts_and_types_by_artifact_ids([self.a])
        assert [x.id for x in found] == [self.a] and [x.id for x in kinds] == [self.dataset]
        refused(errors.InvalidArgumentError, s.put_artifacts, [pb.Artifact(id=self.a, type_id=self.dataset + 999)])
        stored.properties["rows"].int_value = 8
        del stored.custom_properties["note"]
        s.put_artifacts([stored])
        (changed,) = s.get_artifacts_by_id([self.a])
        assert changed.properties["rows"].int_value == 8 and "note" not in changed.custom_properties
        assert changed.last_update_time_since_epoch >= stored.last_update_time_since_epoch

    def masks(self):
        # Only fields named in the mask change.
        (b,) = self.store.put_artifacts([
            pb.Artifact(type_id=self.dataset, uri="one", properties={"rows": pb.Value(int_value=1)})
        ])
        change = pb.Artifact(id=b, type_id=self.dataset, uri="two", properties={"split": pb.Value(string_value="x")})
        self.store.put_artifacts([change], ["uri", "properties.split"])
        (after,) = self.store.get_artifacts_by_id([b])
        assert after.uri == "two" and after.properties["rows"].int_value == 1, after
        assert after.properties["split"].string_value == "x"

    def contexts(self):
        s = self.store
        refused(errors.InvalidArgumentError, s.put_contexts, [pb.Context(type_id=self.run)])
        self.p, self.r, self.q = s.put_contexts([
            pb.Context(type_id=self.pipeline, name=f"p-{RUN}"),
            pb.Context(type_id=self.run, name=f"r-{RUN}"),
            pb.Context(type_id=self.run, name=f"q-{RUN}"),
        ])
        refused(errors.AlreadyExistsError, s.put_contexts, [pb.Context(type_id=self.run, name=f"r-{RUN}")])
        s.put_parent_contexts([pb.ParentContext(child_id=self.r, parent_id=self.p)])
        again = pb.ParentContext(child_id=self.r, parent_id=self.p)
        refused(errors.AlreadyExistsError, s.put_parent_contexts, [again])
        circle = pb.ParentContext(child_id=self.p, parent_id=self.r)
        refused(errors.InvalidArgumentError, s.put_parent_contexts, [circle])
        refused(errors.InvalidArgumentError, s.put_parent_contexts, [pb.ParentContext(child_id=self.p, parent_id=999999)])
        assert [c.id for c in s.get_parent_contexts_by_context(self.r)] == [self.p]
        assert [c.id for c in s.get_children_contexts_by_context(self.p)] == [self.r]
        assert s.get_parent_contexts_by_context(999999) == []
        assert s.get_context_by_type_and_name(f"system.PipelineRun-{RUN}", f"r-{RUN}").id == self.r
        assert [c.id for c in s.get_contexts_by_type(f"system.PipelineRun-{RUN}")] == [self.r, self.q]

    def runs(self):
        s = self.store
        refused(errors.InvalidArgumentError, s.put_events, [pb.Event(artifact_id=self.a, execution_id=999999, type=3)])
        execution = pb.Execution(type_id=self.container, last_known_state=pb.Execution.RUNNING, name=f"train-{RUN}")
        execution.properties["state"].string_value = "RUNNING"
        path = pb.Event.Path(steps=[pb.Event.Path.Step(key="model"), pb.Event.Path.Step(index=0)])
        pairs = [
            (pb.Artifact(id=self.a, type_id=self.dataset, uri="s3://in"), pb.Event(type=pb.Event.INPUT)),
            (pb.Artifact(type_id=self.dataset, uri=f"s3://out/{RUN}"), pb.Event(type=pb.Event.OUTPUT, path=path)),
        ]
        run = pb.Context(id=self.r, type_id=self.run, name=f"r-{RUN}")
        self.e, (a, self.b), (c,) = s.put_execution(execution, pairs, [run])
        assert (a, c) == (self.a, self.r)
        fresh = [pb.Context(type_id=self.run, name=f"r-{RUN}")]
        refused(errors.AlreadyExistsError, s.put_execution, pb.Execution(type_id=self.container), [], fresh)
        again, _, (c,) = s.put_execution(
            pb.Execution(type_id=self.container), [], fresh, reuse_context_if_already_exist=True
        )
        assert c == self.r
        twisted = [(pb.Artifact(type_id=self.dataset), pb.Event(type=pb.Event.OUTPUT, artifact_id=self.a))]
        refused(errors.InvalidArgumentError, s.put_execution, pb.Execution(type_id=self.container), twisted, [])
        events = s.get_events_by_execution_ids([self.e, 999999])
        assert [(x.artifact_id, x.type) for x in events] == [(self.a, pb.Event.INPUT), (self.b, pb.Event.OUTPUT)]
        assert events[1].path == path and events[0].milliseconds_since_epoch > 0
        assert [x.execution_id for x in s.get_events_by_artifact_ids([self.b])] == [self.e]
        refused(errors.AlreadyExistsError, s.put_events, [
            pb.Event(artifact_id=self.a, execution_id=self.e, type=pb.Event.INPUT)
        ])
        refused(errors.InvalidArgumentError, s.put_events, [pb.Event(artifact_id=self.a, execution_id=self.e)])
        assert sorted(x.id for x in s.get_artifacts_by_context(self.r)) == sorted([self.a, self.b])
        assert sorted(x.id for x in s.get_executions_by_context(self.r)) == sorted([self.e, again])
        assert s.get_artifacts_by_context(999999) == []
        assert [x.id for x in s.get_contexts_by_execution(self.e)] == [self.r]
        assert [x.id for x in s.get_contexts_by_artifact(self.b)] == [self.r]
        (stored,) = s.get_executions_by_id([self.e])
        stored.last_known_state = pb.Execution.COMPLETE
        s.put_executions([stored])
        (stored,) = s.get_executions_by_id([self.e])
        assert stored.last_known_state == pb.Execution.COMPLETE and stored.properties["state"].string_value == "RUNNING"
        link = pb.Attribution(artifact_id=self.a, context_id=self.q)
        for _ in range(2):
            s.put_attributions_and_associations([link], [pb.Association(execution_id=self.e, context_id=self.q)])
        assert [x.id for x in s.get_contexts_by_artifact(self.a)] == [self.r, self.q]
        refused(errors.InvalidArgumentError, s.put_attributions_and_associations, [
            pb.Attribution(artifact_id=self.a, context_id=999999)
        ], [])

    def queries(self):
        s = self.store
        (c,) = s.put_artifacts([
            pb.Artifact(type_id=self.dataset, name=f"c-{RUN}", uri=f"u-{RUN}", custom_properties={
                "k": pb.Value(string_value=RUN), "f": pb.Value(double_value=1.5), "t": pb.Value(bool_value=True)
            })
        ])
        (d,) = s.put_artifacts([
            pb.Artifact(type_id=self.dataset, name=f"d-{RUN}", custom_properties={"k": pb.Value(string_value=RUN)})
        ])
        mine = f"custom_properties.k.string_value = '{RUN}'"
        for query, want in {
            mine: [c, d],
            f"{mine} AND uri = 'u-{RUN}'": [c],
            f"{mine} AND uri != 'u-{RUN}'": [d],
            f"{mine} AND external_id IS NULL": [c, d],
            f"{mine} AND NOT (name LIKE 'c-%')": [d],
            f"{mine} AND custom_properties.f.double_value > 1.25": [c],
            f"{mine} AND custom_properties.`t`.bool_value = true": [c],
            f'name = "c-{RUN}" OR name = "d-{RUN}"': [c, d],
            f"name IN ('c-{RUN}', 'x') AND type = 'system.Dataset-{RUN}'": [c],
            f"contexts_a.name = 'r-{RUN}' AND contexts_a.type = 'system.PipelineRun-{RUN}'": [self.a, self.b],
            f"contexts_a.name = 'r-{RUN}' AND contexts_b.name = 'q-{RUN}'": [self.a],
            f"contexts_a.name = 'r-{RUN}' AND contexts_a.name = 'q-{RUN}'": [],
            f"events_0.execution_id = {self.e} AND events_0.type = OUTPUT": [self.b],
            f"id = {c} AND type_id = {self.dataset} AND create_time_since_epoch > 0": [c],
            f"id != {c} AND {mine}": [d],
        }.items():
            found = [x.id for x in s.get_artifacts(ListOptions(filter_query=query))]
            assert found == want, (query, found, want)
        found = s.get_contexts(ListOptions(filter_query=f"parent_contexts_p.name = 'p-{RUN}'"))
        assert [x.id for x in found] == [self.r]
        found = s.get_contexts(ListOptions(filter_query=f"child_contexts_p.name = 'r-{RUN}'"))
        assert [x.id for x in found] == [self.p]
        query = f"last_known_state = COMPLETE AND contexts_a.name = 'r-{RUN}'"
        assert [x.id for x in s.get_executions(ListOptions(filter_query=query))] == [self.e]
        for bad in ("bogus = 1", "uri = 'x", "uri = 'x' ORDER BY 1", "1; DROP TABLE Artifact", "state = NOWHERE"):
            refused(errors.InvalidArgumentError, s.get_artifacts, ListOptions(filter_query=bad))

    def pages(self):
        s, kind = self.store, f"paged-{RUN}"
        type_id = s.put_artifact_type(pb.ArtifactType(name=kind))
        ids = s.put_artifacts([pb.Artifact(type_id=type_id, name=f"n{n}") for n in range(250)])
        query = f"type = '{kind}'"
        assert [x.id for x in s.get_artifacts(ListOptions(filter_query=query))] == ids
        by_time = ListOptions(filter_query=query, order_by=metadata_store.OrderByField.CREATE_TIME, is_asc=False)
        assert sorted(x.id for x in s.get_artifacts(by_time)) == ids
        assert [x.id for x in s.get_artifacts(ListOptions(limit=3, is_asc=False, filter_query=query))] == ids[:-4:-1]
        assert len(s.get_artifacts_by_type(kind)) == 250

    def graph(self):
        s = self.store
        # a -> e -> b -> f -> g, and e2 beside it
        f, (_, g), _ = s.put_execution(pb.Execution(type_id=self.container), [
            (pb.Artifact(id=self.b, type_id=self.dataset), pb.Event(type=pb.Event.INPUT)),
            (pb.Artifact(type_id=self.dataset, uri="g"), pb.Event(type=pb.Event.OUTPUT)),
        ], [])
        options = pb.LineageSubgraphQueryOptions
        start = options.StartingNodes(filter_query=f"id = {self.b}")

        def walk(**more):
            answer = s.get_lineage_subgraph(options(starting_artifacts=start, **more))
            return sorted(x.id for x in answer.artifacts), sorted(x.id for x in answer.executions), answer

        artifacts, executions, answer = walk(max_num_hops=20)
        assert artifacts == sorted([self.a, self.b, g]) and executions == sorted([self.e, f])
        assert len(answer.events) == 4 and {t.id for t in answer.artifact_types} == {self.dataset}
        assert {(x.artifact_id, x.context_id) for x in answer.attributions} >= {(self.a, self.r), (self.b, self.r)}
        assert walk(max_num_hops=1)[:2] == ([self.b], sorted([self.e, f]))
        assert walk(max_num_hops=20, direction=options.UPSTREAM)[:2] == (sorted([self.a, self.b]), [self.e])
        assert walk(max_num_hops=20, direction=options.DOWNSTREAM)[:2] == (sorted([self.b, g]), [f])
        refused(errors.InvalidArgumentError, s.get_lineage_subgraph, options())
        (e,), (a,), (c,) = s.put_lineage_subgraph(
            [pb.Execution(type_id=self.container)],
            [pb.Artifact(type_id=self.dataset)],
            [pb.Context(type_id=self.run, name=f"sub-{RUN}")],
            [(0, 0, pb.Event(type=pb.Event.OUTPUT))],
        )
        assert [x.execution_id for x in s.get_events_by_artifact_ids([a])] == [e]
        assert [x.id for x in s.get_executions_by_context(c)] == [e]
        refused(
            errors.OutOfRangeError, s.put_lineage_subgraph, [pb.Execution(type_id=self.container)], [], [],
            [(0, 4, pb.Event(type=pb.Event.INPUT))],
        )

    def strangers(self, other):
        """Nothing of one namespace exists for a caller of another."""
        assert other.get_artifacts_by_id([self.a, self.b]) == [] and other.get_executions_by_id([self.e]) == []
        assert other.get_contexts_by_id([self.r]) == []
        assert other.get_artifacts(ListOptions(filter_query=f"id = {self.a}")) == []
        assert self.a not in [x.id for x in other.get_artifacts()]
        assert other.get_events_by_execution_ids([self.e]) == [] and other.get_events_by_artifact_ids([self.a]) == []
        assert other.get_artifacts_by_uri("s3://in") == [] and other.get_artifacts_by_context(self.r) == []
        assert other.get_context_by_type_and_name(f"system.PipelineRun-{RUN}", f"r-{RUN}") is None
        assert other.get_artifacts_by_type(f"system.Dataset-{RUN}") == []
        refused(errors.NotFoundError, other.get_artifact_type, f"system.Dataset-{RUN}")
        refused(errors.NotFoundError, other.get_contexts_by_artifact, self.a)
        refused(errors.NotFoundError, other.put_artifacts, [pb.Artifact(type_id=self.dataset)])
        refused(errors.InvalidArgumentError, other.put_artifacts, [pb.Artifact(id=self.a, uri="stolen")])
        kind = other.put_artifact_type(pb.ArtifactType(name=f"system.Dataset-{RUN}", properties={"rows": pb.STRING}))
        (theirs,) = other.put_artifacts([pb.Artifact(type_id=kind, name=f"a-{RUN}")])
        work = other.put_execution_type(pb.ExecutionType(name="w"))
        (execution,) = other.put_executions([pb.Execution(type_id=work)])
        reach = pb.Event(artifact_id=self.a, execution_id=execution, type=pb.Event.INPUT)
        refused(errors.InvalidArgumentError, other.put_events, [reach])
        member = pb.Attribution(artifact_id=theirs, context_id=self.r)
        refused(errors.InvalidArgumentError, other.put_attributions_and_associations, [member], [])
        walk = pb.LineageSubgraphQueryOptions(
            starting_artifacts=pb.LineageSubgraphQueryOptions.StartingNodes(filter_query=f"id = {self.a}")
        )
        assert list(other.get_lineage_subgraph(walk).artifacts) == []
        assert self.store.get_artifacts_by_id([self.a])[0].uri != "stolen"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address", nargs="?")
    parser.add_argument("--stranger")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--ca")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    arguments = parser.parse_args()
    if arguments.reference:
        config = pb.ConnectionConfig()
        config.fake_database.SetInParent()
        lineage = Lineage(metadata_store.MetadataStore(config))
    else:
        lineage = Lineage(connect(arguments.address, arguments))
    for name in ("types", "artifacts", "masks", "contexts", "runs", "queries", "pages", "graph"):
        getattr(lineage, name)()
        print(f"{name}: held")
    if arguments.stranger:
        lineage.strangers(connect(arguments.stranger, arguments))
        print("strangers: held")
    print("ok")


if __name__ == "__main__":
    main()
