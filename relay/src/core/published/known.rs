//! What is known of tables that do not exist at the moment.

use super::{Published, digest};

impl Published {
    /// Keeps what was known of tables that do not exist at the moment: one that comes back is compared with it.
    pub fn remember(&mut self, earlier: &Published) {
        let known = |name: &String| match earlier.short && !self.short {
            true => self.tables.keys().any(|is| digest(is) == *name),
            false => self.tables.contains_key(name),
        };
        let gone: Vec<_> = earlier.tables.iter().filter(|(name, _)| !known(name)).collect();
        if !gone.is_empty() {
            if earlier.short {
                let attached = std::mem::take(&mut self.attached);
                *self = Published { attached, ..self.shortened() };
            }
            self.tables.extend(gone.into_iter().map(|(name, was)| (name.clone(), was.clone())));
        }
    }

    /// Whether it has a table of that name, or that is not known.
    pub fn may_have(&self, name: &str) -> bool {
        let known = match self.short {
            true => self.tables.contains_key(&digest(name)),
            false => self.tables.contains_key(name),
        };
        known || self.digests.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::PublishedTable;
    use crate::core::published::Published;

    fn of(names: &[&str]) -> Published {
        let table = |oid| PublishedTable { oid, own: vec![], above: vec![], stamp: None };
        let tables = names.iter().zip(1..).map(|(name, oid)| ((*name).to_owned(), table(oid)));
        Published { tables: tables.collect(), ..Published::default() }
    }

    #[test]
    fn a_table_that_is_gone_is_compared_when_it_comes_back() {
        let earlier = of(&["public.a", "public.b"]);
        for earlier in [earlier.clone(), earlier.shortened()] {
            let mut now = of(&["public.a"]);
            now.remember(&earlier);
            assert!(now.may_have("public.b") && !now.may_have("public.c"), "{now:?}");
            // Also when it is remembered again, in whichever form.
            let mut later = of(&["public.a"]);
            later.remember(&now);
            assert!(later.may_have("public.b") && later.may_have("public.a"), "{later:?}");
            assert_eq!(later.tables.len(), 2);
        }
        let mut whole = of(&["public.a", "public.b"]);
        whole.remember(&earlier);
        assert_eq!(whole, earlier, "nothing is gone");
    }
}
