//! The engine's decisions, pure: from a pipeline and the states of its tasks to new tasks and new states. Upstream's
//! driver and Argo's DAG evaluation in one function. Invariant: calling [`advance`] twice changes nothing the second
//! time, so that a daemon that was killed decides the same again.

use super::{
    model::{Io, Kind, RunState, State, Task, TaskError, task_id},
    resolve,
};
use crate::{
    spec::{
        Body, Pipeline, ROOT, dependencies, expression,
        ir::{DagSpec, TaskSpec, TriggerStrategy},
    },
    time,
};
use std::collections::BTreeSet;

/// Iterations of one loop. Each is a row and may be a pod; a list longer than this is a mistake.
const MAX_ITERATIONS: usize = 10_000;
/// Tasks of one run, loops unrolled.
const MAX_TASKS: usize = 50_000;

/// Decides all that can be decided now. Returns the ids of the tasks that are new or changed.
pub fn advance(pipeline: &Pipeline, run: &mut RunState) -> BTreeSet<String> {
    // Children come after their parents, and the last of a stack is its first.
    let open = run.tasks.values().filter(|t| !t.is_leaf() && !t.state.is_final()).map(|t| t.id.clone()).collect();
    decide(pipeline, run, open)
}

/// The same where all was decided before, and only the tasks given have changed since: a run of thousands of tasks is not
/// looked through for each of them.
pub fn advance_after(pipeline: &Pipeline, run: &mut RunState, since: &BTreeSet<String>) -> BTreeSet<String> {
    let parents: BTreeSet<&String> = since.iter().filter_map(|id| run.tasks.get(id)?.parent_id.as_ref()).collect();
    let parents = parents.into_iter().cloned().collect();
    decide(pipeline, run, parents)
}

fn decide(pipeline: &Pipeline, run: &mut RunState, mut stack: Vec<String>) -> BTreeSet<String> {
    let mut changed = BTreeSet::new();
    if run.state.is_final() || run.state == State::Canceling {
        return changed;
    }
    if run.tasks.is_empty() {
        let inputs = Io { parameters: run.parameters.clone(), ..Io::default() };
        let mut root = new_task(run, None, ROOT, ROOT, ROOT, None, Kind::Dag, inputs);
        root.enter(State::Running);
        changed.insert(root.id.clone());
        stack.push(root.id.clone());
        run.tasks.insert(root.id.clone(), root);
    }
    if run.state == State::Pending {
        run.enter(State::Running);
    }
    while let Some(id) = stack.pop() {
        let mut touched = BTreeSet::new();
        if !step(pipeline, run, &id, &mut touched) {
            continue;
        }
        match run.tasks.get(&id) {
            Some(task) if task.state.is_final() => stack.extend(task.parent_id.clone()),
            // What was skipped or failed at once may decide what comes after it.
            _ => stack.push(id.clone()),
        }
        let open = |id: &&String| run.tasks.get(*id).is_some_and(|t| !t.is_leaf() && !t.state.is_final());
        stack.extend(touched.iter().filter(|t| **t != id).filter(open).cloned());
        changed.extend(touched);
    }
    if let Some(root) = run.tasks.values().find(|t| t.parent_id.is_none())
        && root.state.is_final()
    {
        let (state, error) = (root.state, run_error(run));
        run.error = if state == State::Failed { error } else { None };
        run.enter(state);
    }
    changed
}

/// The first step that failed, named, with its reason.
fn run_error(run: &RunState) -> Option<TaskError> {
    let mut failed: Vec<&Task> = run.tasks.values().filter(|t| t.state == State::Failed && t.error.is_some()).collect();
    // A leaf's own failure says more than its DAG's.
    failed.sort_by_key(|t| (!t.is_leaf(), t.finished_at));
    let task = failed.first()?;
    let error = task.error.as_ref()?;
    Some(TaskError { code: error.code, message: format!("step {} failed: {}", shown_path(task), error.message) })
}

/// A task's place without the root, for people.
pub fn shown_path(task: &Task) -> &str {
    task.path.strip_prefix("root.").unwrap_or(&task.path)
}

#[expect(clippy::too_many_arguments, reason = "the fields of a task, in their order")]
fn new_task(
    run: &RunState,
    parent: Option<&Task>,
    name: &str,
    display_name: &str,
    component: &str,
    iteration: Option<u32>,
    kind: Kind,
    inputs: Io,
) -> Task {
    let path = match (parent, iteration) {
        (None, _) => name.to_owned(),
        (Some(parent), None) => format!("{}.{name}", parent.path),
        (Some(parent), Some(n)) => format!("{}#{n}", parent.path),
    };
    let mut task = Task {
        id: task_id(&run.id, &path),
        parent_id: parent.map(|p| p.id.clone()),
        path,
        name: name.to_owned(),
        display_name: display_name.to_owned(),
        kind,
        component: component.to_owned(),
        iteration,
        state: State::Pending,
        inputs,
        outputs: Io::default(),
        created_at: time::now(),
        started_at: None,
        finished_at: None,
        history: Vec::new(),
        error: None,
        attempt: 0,
        retries: 0,
        retry_at: None,
        pod_name: None,
        pod_created: false,
        began: false,
        failed_pods: Vec::new(),
        fingerprint: None,
        cached_from: None,
        execution_id: None,
        command: Vec::new(),
        image: String::new(),
        log_archived: false,
    };
    task.enter(State::Pending);
    task
}

/// The task spec behind a task: in the DAG of its parent, which for an iteration is the loop's own.
pub(super) fn spec_of<'a>(pipeline: &'a Pipeline, run: &RunState, task: &Task) -> Option<&'a TaskSpec> {
    let mut parent = run.tasks.get(task.parent_id.as_ref()?)?;
    if task.iteration.is_some() {
        parent = run.tasks.get(parent.parent_id.as_ref()?)?;
    }
    match pipeline.body(pipeline.component(&parent.component)?)? {
        Body::Dag(dag) => dag.tasks.get(&task.name),
        _ => None,
    }
}

fn step(pipeline: &Pipeline, run: &mut RunState, id: &str, changed: &mut BTreeSet<String>) -> bool {
    let Some(task) = run.tasks.get(id).filter(|t| !t.state.is_final()).cloned() else { return false };
    if task.kind == Kind::Loop {
        return step_loop(pipeline, run, &task, changed);
    }
    let body = pipeline.component(&task.component).and_then(|c| pipeline.body(c));
    let Some(Body::Dag(dag)) = body else {
        fail(run, id, "its component is no DAG any more", changed);
        return true;
    };
    step_dag(pipeline, run, &task, dag, changed)
}

fn fail(run: &mut RunState, id: &str, why: &str, changed: &mut BTreeSet<String>) {
    if let Some(task) = run.tasks.get_mut(id) {
        task.error = Some(TaskError { code: 9, message: why.to_owned() });
        task.enter(State::Failed);
        changed.insert(id.to_owned());
    }
}

fn step_dag(
    pipeline: &Pipeline,
    run: &mut RunState,
    task: &Task,
    dag: &DagSpec,
    changed: &mut BTreeSet<String>,
) -> bool {
    let mut moved = false;
    let mut done = true;
    for (name, spec) in &dag.tasks {
        if let Some(child) = resolve::child(run, task, name) {
            done &= child.state.is_final();
            continue;
        }
        let mut ready = true;
        let mut unlucky = None;
        for dependency in dependencies(spec) {
            match resolve::child(run, task, dependency).map(|t| t.state) {
                Some(state) if state.is_final() => {
                    if state != State::Succeeded {
                        unlucky = Some((dependency.to_owned(), state));
                    }
                }
                _ => ready = false,
            }
        }
        if !ready {
            done = false;
            continue;
        }
        if spec.trigger_policy.strategy == TriggerStrategy::AllUpstreamTasksCompleted {
            unlucky = None;
        }
        let child = create(pipeline, run, task, name, spec, unlucky);
        done &= child.state.is_final();
        changed.insert(child.id.clone());
        run.tasks.insert(child.id.clone(), child);
        moved = true;
    }
    if !done {
        return moved;
    }
    let children: Vec<&Task> = run.tasks.values().filter(|t| t.parent_id.as_deref() == Some(&task.id)).collect();
    let (state, error) = outcome(&children);
    let outputs =
        pipeline.component(&task.component).map(|c| resolve::dag_outputs(run, task, dag, c)).unwrap_or_default();
    close(run, &task.id, state, error, outputs, changed);
    true
}

fn outcome(children: &[&Task]) -> (State, Option<TaskError>) {
    if let Some(failed) = children.iter().find(|t| t.state == State::Failed) {
        let why = failed.error.as_ref().map_or("it failed", |e| e.message.as_str());
        let why = why.lines().next().unwrap_or_default();
        return (State::Failed, Some(TaskError { code: 2, message: format!("{} failed: {why}", shown_path(failed)) }));
    }
    if children.iter().any(|t| t.state == State::Canceled) {
        return (State::Canceled, None);
    }
    (State::Succeeded, None)
}

fn close(
    run: &mut RunState,
    id: &str,
    state: State,
    error: Option<TaskError>,
    outputs: Io,
    changed: &mut BTreeSet<String>,
) {
    if let Some(task) = run.tasks.get_mut(id) {
        task.outputs = outputs;
        task.error = error;
        task.enter(state);
        changed.insert(id.to_owned());
    }
}

fn create(
    pipeline: &Pipeline,
    run: &RunState,
    parent: &Task,
    name: &str,
    spec: &TaskSpec,
    unlucky: Option<(String, State)>,
) -> Task {
    let display_name = if spec.task_info.name.is_empty() { name } else { &spec.task_info.name };
    let component_name = &spec.component_ref.name;
    let component = pipeline.component(component_name);
    let kind = match component {
        Some(_) if resolve::is_loop(spec) => Kind::Loop,
        Some(component) => resolve::kind(pipeline, component),
        None => Kind::Dag,
    };
    let make = |inputs: Io| new_task(run, Some(parent), name, display_name, component_name, None, kind, inputs);
    if let Some((dependency, state)) = unlucky {
        let mut task = make(Io::default());
        task.enter(State::Skipped);
        if state == State::Failed {
            task.error = Some(TaskError { code: 9, message: format!("{dependency} failed before it") });
        }
        return task;
    }
    if run.tasks.len() >= MAX_TASKS {
        let mut task = make(Io::default());
        task.error = Some(TaskError { code: 8, message: format!("the run has more than {MAX_TASKS} tasks") });
        task.enter(State::Failed);
        return task;
    }
    let inputs = component.map_or_else(
        || Err("its component does not exist".to_owned()),
        |c| resolve::inputs(run, parent, name, spec, c),
    );
    let inputs = match inputs {
        Ok(inputs) => inputs,
        Err(why) => {
            let mut task = make(Io::default());
            task.error = Some(TaskError { code: 9, message: why });
            task.enter(State::Failed);
            return task;
        }
    };
    let mut task = make(inputs);
    if !spec.trigger_policy.condition.is_empty() {
        match expression::condition(&spec.trigger_policy.condition, &task.inputs.parameters) {
            Ok(true) => {}
            Ok(false) => {
                task.enter(State::Skipped);
                return task;
            }
            Err(why) => {
                let message = format!("its condition `{}` cannot be decided: {why}", spec.trigger_policy.condition);
                task.error = Some(TaskError { code: 9, message });
                task.enter(State::Failed);
                return task;
            }
        }
    }
    if !task.is_leaf() {
        task.enter(State::Running);
    }
    task
}

fn step_loop(pipeline: &Pipeline, run: &mut RunState, task: &Task, changed: &mut BTreeSet<String>) -> bool {
    let (Some(spec), Some(component)) = (spec_of(pipeline, run, task), pipeline.component(&task.component)) else {
        fail(run, &task.id, "its loop is not in the pipeline any more", changed);
        return true;
    };
    let items = match resolve::iterations(spec, component, &task.inputs) {
        Ok(items) if items.len() > MAX_ITERATIONS => {
            fail(run, &task.id, &format!("the loop has {} items; {MAX_ITERATIONS} are the most", items.len()), changed);
            return true;
        }
        Ok(items) => items,
        Err(why) => {
            fail(run, &task.id, &why, changed);
            return true;
        }
    };
    let ids: Vec<String> = (0..items.len()).map(|n| task_id(&run.id, &format!("{}#{n}", task.path))).collect();
    let limit = spec.iterator_policy.as_ref().map_or(0, |p| p.parallelism_limit as usize);
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut running = ids.iter().filter_map(|id| run.tasks.get(id)).filter(|t| !t.state.is_final()).count();
    let kind = resolve::kind(pipeline, component);
    let mut moved = false;
    for ((n, inputs), id) in items.into_iter().enumerate().zip(&ids) {
        if running >= limit {
            break;
        }
        if run.tasks.contains_key(id) {
            continue;
        }
        let iteration = u32::try_from(n).unwrap_or(u32::MAX);
        let mut child = new_task(
            run,
            Some(task),
            &task.name,
            &format!("{} #{n}", task.display_name),
            &task.component,
            Some(iteration),
            kind,
            inputs,
        );
        if !child.is_leaf() {
            child.enter(State::Running);
        }
        running += 1;
        changed.insert(child.id.clone());
        run.tasks.insert(child.id.clone(), child);
        moved = true;
    }
    let children: Vec<&Task> = ids.iter().filter_map(|id| run.tasks.get(id)).collect();
    if children.len() < ids.len() || children.iter().any(|t| !t.state.is_final()) {
        return moved;
    }
    let (state, error) = outcome(&children);
    let outputs = resolve::loop_outputs(pipeline, component, &children);
    close(run, &task.id, state, error, outputs, changed);
    true
}

/// Ends every open task as canceled (or the run as failed, with `error`).
pub fn cancel(run: &mut RunState, error: Option<TaskError>) -> BTreeSet<String> {
    let mut changed = BTreeSet::new();
    for task in run.tasks.values_mut().filter(|t| !t.state.is_final()) {
        task.enter(State::Canceled);
        changed.insert(task.id.clone());
    }
    let state = if error.is_some() { State::Failed } else { State::Canceled };
    run.error = error;
    run.enter(state);
    changed
}

/// Makes a failed or canceled run go on where it failed: what failed is tried again, what was skipped because of it is
/// decided again. Returns the tasks that changed and those that are gone.
pub fn retry(run: &mut RunState) -> (BTreeSet<String>, Vec<String>) {
    let mut changed = BTreeSet::new();
    let mut removed = BTreeSet::new();
    for task in run.tasks.values_mut() {
        match (task.kind, task.state) {
            (Kind::Container | Kind::Importer, State::Failed | State::Canceled) if !task.inputs_missing() => {
                restart(task);
                changed.insert(task.id.clone());
            }
            (Kind::Dag | Kind::Loop, State::Failed | State::Canceled) if !task.inputs_missing() => {
                task.error = None;
                task.finished_at = None;
                task.enter(State::Running);
                changed.insert(task.id.clone());
            }
            (_, State::Skipped | State::Failed | State::Canceled) => drop(removed.insert(task.id.clone())),
            _ => {}
        }
    }
    // A skipped condition of a branch that did not fail is decided again and skipped again; its children never were.
    let removed: Vec<String> = removed.into_iter().collect();
    for id in &removed {
        run.tasks.shift_remove(id);
    }
    run.error = None;
    run.finished_at = None;
    run.enter(State::Running);
    (changed, removed)
}

/// A new attempt of a leaf.
pub(super) fn restart(task: &mut Task) {
    if let Some(pod) = task.pod_name.take() {
        task.failed_pods.push(pod);
    }
    task.attempt += 1;
    task.retry_at = None;
    task.pod_created = false;
    task.began = false;
    task.log_archived = false;
    task.command.clear();
    task.execution_id = None;
    task.error = None;
    task.finished_at = None;
    task.enter(State::Pending);
}

impl Task {
    /// It failed while its inputs were resolved: it must be made anew.
    fn inputs_missing(&self) -> bool {
        self.state == State::Failed
            && self.history.len() <= 2
            && self.started_at.is_none()
            && self.pod_name.is_none()
            && self.inputs == Io::default()
            && self.error.as_ref().is_some_and(|e| e.code == 9)
    }
}
