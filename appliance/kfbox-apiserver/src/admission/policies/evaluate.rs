//! Evaluating a policy's expressions within one budget, its variables once each and only when asked for.

use super::config::{Common, Compiled};
use crate::{
    admission::dynamic::{Bindings, failure},
    cel::{BUDGET, Cel, CelError, Expression, Meter, OUT_OF_BUDGET, PER_CALL_LIMIT, Variables},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

/// One policy on one request with one parameter.
pub struct Session<'a> {
    bindings: &'a Bindings<'a>,
    variables: &'a [(String, Compiled)],
    known: RefCell<HashMap<&'a str, Result<Cel, CelError>>>,
    /// What variables cost since the last expression was paid for.
    composed: Cell<u64>,
    left: Cell<u64>,
}

/// Why an expression has no result.
pub enum Stop {
    /// This expression alone.
    Failed(String),
    /// Nothing more will be evaluated.
    OutOfBudget,
}

impl Stop {
    pub fn text(&self) -> &str {
        match self {
            Self::Failed(why) => why,
            Self::OutOfBudget => OUT_OF_BUDGET,
        }
    }
}

impl<'a> Session<'a> {
    pub fn new(common: &'a Common, bindings: &'a Bindings<'a>) -> Self {
        Self {
            bindings,
            variables: &common.variables,
            known: RefCell::default(),
            composed: Cell::new(0),
            left: Cell::new(BUDGET),
        }
    }

    pub fn evaluate(&self, expression: &Compiled) -> Result<Cel, Stop> {
        let expression: &Expression = match expression {
            Ok(expression) => expression,
            Err(why) => return Err(Stop::Failed(format!("compilation error: {why}"))),
        };
        let evaluation = expression.evaluate(self);
        let cost = evaluation.cost.saturating_add(self.composed.take());
        let Some(left) = self.left.get().checked_sub(cost) else {
            self.left.set(0);
            return Err(Stop::OutOfBudget);
        };
        self.left.set(left);
        evaluation.result.map_err(|error| Stop::Failed(failure(expression, error)))
    }
}

impl Variables for Session<'_> {
    fn get(&self, name: &str) -> Option<Cel> {
        self.bindings.get(name)
    }

    fn composed(&self, name: &str, meter: &mut Meter) -> Result<Cel, CelError> {
        let Some((name, expression)) = self.variables.iter().find(|(known, _)| known == name) else {
            return Err(CelError::NoSuchKey(name.to_owned()));
        };
        if let Some(known) = self.known.borrow().get(name.as_str()) {
            return known.clone();
        }
        let result = match expression {
            Err(why) => Err(CelError::Failed(format!("composited variable {name:?} fails to compile: {why}"))),
            Ok(expression) => {
                // A variable has the limit of a call to itself; the budget pays for it.
                let mut own = Meter::new(PER_CALL_LIMIT);
                let result = expression.evaluate_metered(self, &mut own);
                self.composed.set(self.composed.get().saturating_add(own.spent()));
                result.map_err(|error| match error {
                    CelError::Cost => CelError::Cost,
                    other => CelError::Failed(format!("composited variable {name:?} fails to evaluate: {other}")),
                })
            }
        };
        meter.charge(1)?;
        self.known.borrow_mut().insert(name.as_str(), result.clone());
        result
    }
}
