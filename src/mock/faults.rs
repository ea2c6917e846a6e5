//! What can go wrong, as data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The calls that faults can be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    CreateToken,
    ListTokens,
    RevokeToken,
    Provision,
    DeviceSelf,
    Checkin,
    EdgeStatus,
    Files,
}

/// Whether the server has done its work when the fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    BeforeCommit,
    AfterCommit,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// An error of the API's own, without doing anything.
    Status {
        status: u16,
        #[serde(default)]
        code: String,
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// The right answer, but late.
    Delay {
        ms: u64,
    },
    /// No answer, ever; the connection stays open.
    Hang {
        moment: Moment,
    },
    /// The connection is reset.
    Reset {
        moment: Moment,
    },
    /// The right answer, of which only the first bytes arrive.
    CutAfter {
        bytes: usize,
    },
    /// The right answer, byte by byte.
    Trickle {
        ms_per_byte: u64,
    },
    /// A body that never ends.
    EndlessBody,
    /// A body of so many bytes, announced as such.
    GiantBody {
        bytes: u64,
    },
    /// `200 OK` and a login page.
    CaptivePortal,
    Redirect {
        location: String,
    },
    /// The right answer under a `Content-Length` that is off by so much.
    WrongLength {
        off_by: i64,
    },
    /// An answer with this body instead of the right one.
    Body {
        status: u16,
        text: String,
    },
    /// A body that is not UTF-8.
    BadUtf8,
    /// Bytes that are not HTTP.
    Garbage,
    /// The right answer, then the connection is closed without having said so.
    CloseAfter,
}

/// A fault, and which calls of a route it strikes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    pub route: Route,
    pub fault: Fault,
    /// Calls to let pass first.
    #[serde(default)]
    pub skip: u32,
    /// Calls to strike after those; absent: all.
    #[serde(default)]
    pub times: Option<u32>,
}

impl Fault {
    /// On every call of the route.
    pub fn on(self, route: Route) -> FaultPlan {
        FaultPlan {
            route,
            fault: self,
            skip: 0,
            times: None,
        }
    }

    pub fn status(status: u16, code: &str) -> Fault {
        Fault::Status {
            status,
            code: code.into(),
            retry_after: None,
        }
    }

    pub(super) fn delay(&self) -> Option<Duration> {
        match self {
            Fault::Delay { ms } => Some(Duration::from_millis(*ms)),
            _ => None,
        }
    }

    /// Whether the server does its work in spite of the fault.
    pub(super) fn commits(&self) -> bool {
        match self {
            Fault::Hang { moment } | Fault::Reset { moment } => *moment == Moment::AfterCommit,
            Fault::Delay { .. }
            | Fault::CutAfter { .. }
            | Fault::Trickle { .. }
            | Fault::WrongLength { .. }
            | Fault::CloseAfter => true,
            _ => false,
        }
    }
}

impl FaultPlan {
    pub fn times(mut self, times: u32) -> FaultPlan {
        self.times = Some(times);
        self
    }

    pub fn after(mut self, calls: u32) -> FaultPlan {
        self.skip = calls;
        self
    }

    /// Counts one call; the fault that strikes it, if any.
    pub(super) fn strike(&mut self, route: Route) -> Option<Fault> {
        if route != self.route {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        match &mut self.times {
            None => Some(self.fault.clone()),
            Some(0) => None,
            Some(left) => {
                *left -= 1;
                Some(self.fault.clone())
            }
        }
    }
}
