//! Does the cluster's nameserver keep its answers so long that servers are found late?
//!
//! Only where DNS alone tells who is there: with a token for the Kubernetes API nobody waits for it. Reads CoreDNS's Corefile as far as
//! its plug-ins `kubernetes` and `cache` go (<https://coredns.io/plugins/cache/>).

use super::super::finding::{Finding, Report, Unseen};
use super::super::objects::{Objects, text, why_unseen};

/// What Kubernetes' installers give. An answer is kept for the lesser one of the record's own time and the cache's, also "no such name".
const USUAL: u32 = 30;

pub(super) fn check(objects: &Objects, report: &mut Report) {
    if objects.template().is_none() || objects.rights.is_some() {
        return;
    }
    let map = match &objects.core_dns {
        Ok(Some(map)) => map,
        // Another nameserver than CoreDNS.
        Ok(None) => return,
        Err(error) => return report.unseen.push(Unseen { what: "the cache of CoreDNS", why: why_unseen(error) }),
    };
    let Some(kept) = kept(text(map, "/data/Corefile")) else { return };
    report.looked.push("dns-cache");
    if kept > USUAL {
        report.findings.push(Finding {
            check: "dns-cache",
            subject: "ConfigMap kube-system/coredns".to_owned(),
            what: format!("CoreDNS keeps what it answers for {kept} s, also that a name has no address"),
            why: "servers and clients that start meanwhile do not find each other, and go on asking addresses that are gone".to_owned(),
            mend: "# In the Corefile: \"ttl 5\" within kubernetes { }, and \"cache 30\". CoreDNS reads it again by itself.\n\
                   kubectl -n kube-system edit configmap coredns"
                .to_owned(),
        });
    }
}

/// For how many seconds an answer about a Pod or a Service is kept; `None` where the file does not say.
fn kept(corefile: &str) -> Option<u32> {
    let mut ttl = None;
    let mut cache = None;
    let mut block = String::new();
    for line in corefile.lines() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        match words.as_slice() {
            ["kubernetes", ..] => {
                // CoreDNS's own defaults: 5 s for a record, an hour for the cache.
                ttl = ttl.or(Some(5));
                "kubernetes".clone_into(&mut block);
            }
            ["cache", rest @ ..] => {
                cache = rest.first().and_then(|first| first.parse().ok()).or(Some(3600));
                "cache".clone_into(&mut block);
            }
            ["ttl", seconds] if block == "kubernetes" => ttl = seconds.parse().ok(),
            ["}"] => block.clear(),
            _ => {}
        }
    }
    // Without the plug-in nothing is kept here, and only by who asked.
    Some(ttl?.min(cache.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn the_lesser_time_of_record_and_cache_counts() {
        let corefile = |kubernetes: &str, cache: &str| {
            format!(
                ".:53 {{\n    errors\n    kubernetes cluster.local {{\n       pods insecure\n{kubernetes}    }}\n{cache}    loop\n}}\n"
            )
        };
        for (kubernetes, cache, expected) in [
            ("       ttl 30\n", "    cache 30 {\n       disable success cluster.local\n    }\n", 30),
            ("", "    cache\n", 5),
            ("       ttl 300\n", "    cache\n", 300),
            ("       ttl 300 # long\n", "    cache 60\n", 60),
            ("       ttl 300\n", "", 0),
        ] {
            assert_eq!(kept(&corefile(kubernetes, cache)), Some(expected), "{kubernetes}{cache}");
        }
        assert_eq!(kept(".:53 {\n  forward . 1.1.1.1\n}\n"), None);
    }
}
