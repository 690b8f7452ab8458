//! convene brings a Consul cluster together on Kubernetes and takes it apart well.
//!
//! # Theory of operation
//!
//! One flow, in the order of the modules below:
//!
//! 1. [`cli`] says what can be said; [`settings`] reads, bounds and cross-checks it, with the environment, the Pod's facts
//!    and what CMD's own arguments tell Consul. After it there are no raw strings.
//! 2. [`survey`] looks at who is there: sources (a StatefulSet's ordinals, the Kubernetes API, DNS, fixed addresses) give addresses,
//!    and every other server that is found is asked by [`api`] what it knows of a cluster. It never fails as a whole:
//!    a source that failed is a field of it.
//! 3. [`decide`] says once what this node must do: join, rejoin, found, wait or refuse. It is pure and numbered. Ourselves
//!    are never evidence, and an error is never an empty answer.
//! 4. [`record`] writes that down on the volume, with the node ID, in a way that a kill at any moment survives; [`claim`] writes
//!    into Kubernetes what must outlive all volumes.
//! 5. [`render`] gives Consul its part as one file. [`init`] is the steps up to here.
//! 6. [`run`] starts Consul's agent and supervises it as PID 1, joins peers that are found late, and notes when the cluster
//!    has [`formed`].
//! 7. [`stop`] ends it well: with a graceful leave that another server confirms, or without one.
//!
//! [`check`], [`discover`] and [`install`] are the other commands, on the same settings and the same survey; `watch` is the part
//! of [`run`] beside an agent that is PID 1 itself. [`reap`] runs beside no agent: it removes clients whose machine is gone.
//! [`doctor`] looks at all of it, from inside or outside, and says what is wrong and how it is mended.
//! [`recover`] gives a server that has lost its quorum a raft configuration with which it can lead again.
//! [`events`] tells a person what was decided.
//! [`dial`] connects in spite of a lost packet.
//!
//! Three things hold throughout. What is written is written as a whole or not at all, and before anybody acts on it. A second
//! run on the same world writes the same bytes. Every end has an exit code of [`exit`] and one line that says what, where,
//! and what to do.

pub mod cli;
pub mod settings;

pub mod survey;

pub mod decide;

pub mod record;

pub mod claim;

pub mod render;

pub mod init;

pub mod formed;
pub mod run;

pub mod stop;

pub mod check;
pub mod discover;
pub mod doctor;
pub mod install;
pub mod reap;
pub mod recover;

pub mod api;
pub mod dial;
pub mod events;
pub mod exit;
pub mod log;
pub mod process;
pub mod time;
