//! stub
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
#[derive(Debug, Clone)]
pub struct Said<T> {
    pub value: T,
    pub place: String,
}
#[derive(Debug, Clone)]
pub struct Adv(pub Option<IpAddr>);
impl Adv {
    pub fn ip(&self) -> Option<IpAddr> {
        self.0
    }
}
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub server: Option<Said<bool>>,
    pub bind_addr: Option<Said<String>>,
    pub client_addr: Option<Said<String>>,
    pub addresses_http: Option<Said<String>>,
    pub port_http: Option<Said<i64>>,
    pub port_https: Option<Said<i64>>,
    pub port_server: Option<Said<i64>>,
    pub port_serf_lan: Option<Said<i64>>,
    pub node_name: Option<Said<String>>,
    pub data_dir: Option<Said<PathBuf>>,
    pub datacenter: Option<Said<String>>,
    pub domain: Option<Said<String>>,
    pub bootstrap_expect: Option<Said<i64>>,
    pub advertise_addr: Option<Said<Adv>>,
}
impl Facts {
    pub fn joins(&self) -> Vec<Said<String>> {
        vec![]
    }
}
#[derive(Debug, Clone)]
pub struct AgentCommand {
    f: Facts,
    w: Vec<String>,
    c: Vec<OsString>,
}
pub struct Wanted;
impl AgentCommand {
    pub fn read(c: &[OsString]) -> Result<Option<Self>, std::fmt::Error> {
        let _ = c;
        Ok(None)
    }
    pub fn facts(&self) -> &Facts {
        &self.f
    }
    pub fn warnings(&self) -> &[String] {
        &self.w
    }
    pub fn contradictions(&self, _: &Wanted) -> Vec<String> {
        vec![]
    }
    pub fn with_config_file(&self, _: &Path) -> Vec<OsString> {
        self.c.clone()
    }
}
