//! The one writer: a thread that runs queued jobs, each in its savepoint, and commits them together, so that the cost
//! of a durable commit is shared by all who wait for it.

use crate::Error;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::sync::mpsc;

/// Runs inside the group's transaction; returns what to do once the fate of the group is known.
pub(crate) type Job = Box<dyn FnOnce(&Transaction<'_>) -> Answer + Send>;
pub(crate) type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// The largest group: bounds how long the first caller of a group waits for the last.
const GROUP: usize = 256;

pub(crate) fn run(mut connection: Connection, jobs: &mpsc::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut answers = Vec::new();
        let outcome = commit_group(&mut connection, first, jobs, &mut answers);
        for answer in answers {
            answer(outcome.clone());
        }
    }
}

fn commit_group(
    connection: &mut Connection,
    first: Job,
    jobs: &mpsc::Receiver<Job>,
    answers: &mut Vec<Answer>,
) -> Result<(), Error> {
    // A job dropped unanswered closes its caller's channel, which reads as an error there.
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    answers.push(first(&tx));
    while answers.len() < GROUP
        && let Ok(job) = jobs.try_recv()
    {
        answers.push(job(&tx));
    }
    tx.commit().map_err(Error::from)
}
