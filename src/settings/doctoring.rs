//! Which servers does `doctor` look at, and how is the answer shown? Its own flags.
//!
//! Takes the flags, gives [`Doctoring`]. Asks nobody. Fails with [`SettingsError`].

use super::read::{Reader, SettingsError};
use super::{Local, Role, Survey, default_config_out, needed_kubernetes};
use crate::api::kube::Access;
use crate::cli::DoctorArgs;
use crate::doctor::finding::{OUTPUTS, Output};
use std::path::PathBuf;

/// What `doctor` looks at.
#[derive(Debug, Clone)]
pub struct Doctoring {
    /// How it is shown.
    pub output: Output,
    /// The servers' namespace; `None`: the one that the kubeconfig or the service account names.
    pub namespace: Option<String>,
    /// Their StatefulSet; `None`: the only one of the namespace.
    pub stateful_set: Option<String>,
    /// We are in one of its Pods, whose agent and volume are ours to look at.
    pub inside: bool,
    /// How the Kubernetes API is asked, where it can be.
    pub access: Option<Access>,
    /// The file that convene renders for the own agent.
    pub rendered: PathBuf,
    /// How the other servers are found in one of its Pods, where the Kubernetes API does not say.
    pub survey: Option<Survey>,
}

// === impl Doctoring ===

impl Doctoring {
    /// Reads what to look at. A server's own Pod is the default.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn read(reader: Reader<'_>, args: &DoctorArgs, local: &Local) -> Result<Self, SettingsError> {
        let DoctorArgs { common: _, survey, output, namespace, stateful_set } = args;
        let own = local.seat.as_ref().map(|seat| seat.statefulset.clone());
        let (namespace, named) =
            (reader.text(namespace).map(str::to_owned), reader.text(stateful_set).map(str::to_owned));
        let elsewhere = named.is_some() && named != own || namespace.is_some() && namespace != local.owner.namespace;
        let inside = own.is_some() && !elsewhere;
        let survey = inside.then(|| Survey::read(reader, survey, local, Role::Server, None)).transpose()?;
        Ok(Self {
            output: reader.choice("output", output, OUTPUTS)?.unwrap_or_default(),
            inside,
            rendered: reader
                .env
                .get("CONVENE_CONFIG_OUT")
                .map_or_else(|| default_config_out(&local.data_dir), PathBuf::from),
            namespace: namespace.or_else(|| local.owner.namespace.clone()),
            stateful_set: named.or(own.filter(|_| !elsewhere)),
            access: needed_kubernetes(reader).ok(),
            survey,
        })
    }
}
