//! What may our token, and any path as it stands: for `doctor`.
//!
//! Takes the agent, gives rights in the order in which they were asked, or the bytes of an answer. Changes nothing.

use super::{Agent, ApiError, MAX_ANSWER};
use crate::api::client::beginning;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

// === impl Agent ===

impl Agent {
    /// GETs any path, for `doctor`, which looks at much and keeps little of it.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn read(&self, path: &str, within: Duration) -> Result<Vec<u8>, ApiError> {
        self.answer(Method::GET, path, within, MAX_ANSWER).await.map(|(_, body)| body)
    }

    /// `POST /v1/internal/acl/authorize`: which of these rights (resource, segment, access) our token has, in their order. Consul's own
    /// UI asks it; it changes nothing and needs no right. Tried on 1.22.6: without a token it answers for the anonymous one; with ACLs
    /// off 401, "ACL support disabled"; for a token that Consul does not know 403, "ACL not found".
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn may(&self, rights: &[(&str, &str, &str)], within: Duration) -> Result<Vec<bool>, ApiError> {
        let path = "/v1/internal/acl/authorize";
        let asked: Vec<Value> = rights
            .iter()
            .map(|(resource, segment, access)| json!({"Resource": resource, "Segment": segment, "Access": access}))
            .collect();
        let body = Value::from(asked).to_string().into_bytes();
        let (_, body) = self.answer_to(Method::POST, path, body, within, MAX_ANSWER).await?;
        let strange = || ApiError::Strange {
            url: format!("{}{path}", self.base),
            reason: "an answer to each right was expected".to_owned(),
            begins: beginning(&body),
        };
        let answers: Value = serde_json::from_slice(&body).map_err(|_| strange())?;
        let answers = answers.as_array().filter(|answers| answers.len() == rights.len()).ok_or_else(strange)?;
        Ok(answers.iter().map(|answer| answer.get("Allow") == Some(&Value::Bool(true))).collect())
    }
}
