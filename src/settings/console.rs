//! The configuration as questions, one after another: for a screen with a keyboard and nothing else.

use super::schema::{FIELDS, Field, MOST_ROWS, ROW, row_path};
use super::{Answers, Kept};

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The path of the field.
    pub path: String,
    /// The field.
    pub field: &'static Field,
    /// What is answered now; empty for secrets.
    pub now: String,
    /// Whether a secret is kept already.
    pub kept: bool,
}

/// What takes an answer away.
pub const NOTHING: &str = "-";

/// Walks through the schema. An empty line leaves what is there; [`NOTHING`] takes it away.
#[derive(Clone, Debug)]
pub struct Dialogue {
    answers: Answers,
    kept: Kept,
    next: Option<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Field(usize),
    /// Row and field in it.
    Row(usize, usize),
}

impl Dialogue {
    /// Begins with what is answered already.
    pub fn new(answers: Answers, kept: Kept) -> Self {
        Self { answers, kept, next: Some(Step::Field(0)) }
    }

    /// What is asked now; `None` when all is.
    pub fn question(&self) -> Option<Question> {
        let (path, field) = self.at(self.next?)?;
        let now = if field.kind.is_secret() { "" } else { self.answers.text(&path).unwrap_or_default() };
        let kept = field.path == "omni.key" && self.kept.key || field.path == "setup.code";
        Some(Question { now: now.to_owned(), kept, path, field })
    }

    /// Takes the answer to what is asked now, and goes on. A row whose first answer is nothing is left out and ends the
    /// rows.
    pub fn answer(&mut self, line: &str) {
        let Some((path, _)) = self.next.and_then(|step| self.at(step)) else { return };
        match line.trim() {
            "" => {}
            NOTHING => self.answers.put(&path, ""),
            text => self.answers.put(&path, text),
        }
        self.next = match self.next {
            Some(Step::Field(index)) if index + 1 < FIELDS.len() => Some(Step::Field(index + 1)),
            Some(Step::Field(_)) => Some(Step::Row(0, 0)),
            Some(Step::Row(row, 0)) if self.answers.text(&path).is_none() => {
                self.drop_rows(row);
                None
            }
            Some(Step::Row(row, index)) if index + 1 < ROW.len() => Some(Step::Row(row, index + 1)),
            Some(Step::Row(row, _)) if row + 1 < MOST_ROWS => Some(Step::Row(row + 1, 0)),
            Some(Step::Row(..)) | None => None,
        };
    }

    /// What is answered so far.
    pub const fn answers(&self) -> &Answers {
        &self.answers
    }

    fn at(&self, step: Step) -> Option<(String, &'static Field)> {
        match step {
            Step::Field(index) => FIELDS.get(index).map(|field| (field.path.to_owned(), field)),
            Step::Row(row, index) => ROW.get(index).map(|field| (row_path(row, field.path), field)),
        }
    }

    fn drop_rows(&mut self, from: usize) {
        for row in from..MOST_ROWS {
            for field in ROW {
                self.answers.put(&row_path(row, field.path), "");
            }
        }
    }
}
