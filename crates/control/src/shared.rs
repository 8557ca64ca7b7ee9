//! An ordered map whose clone shares everything with its original until one of them changes: what snapshots are made of.

use immutable_chunkmap::map::MapM;
use std::fmt;
use std::sync::Arc;

/// Values are copied when they change while a clone still holds them, and in place otherwise.
#[derive(Clone)]
pub struct SharedMap<K: Ord + Clone + fmt::Debug, V: Clone>(MapM<K, Arc<V>>);

impl<K: Ord + Clone + fmt::Debug, V: Clone> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self(MapM::new())
    }
}

impl<K: Ord + Clone + fmt::Debug, V: Clone> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys()).finish()
    }
}

impl<K: Ord + Clone + fmt::Debug, V: Clone> SharedMap<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key).map(|value| &**value)
    }

    pub fn get_or_insert_with(&mut self, key: &K, value: impl FnOnce() -> V) -> &mut V {
        Arc::make_mut(self.0.get_or_insert_cow(key.clone(), || Arc::new(value())))
    }

    pub fn insert(&mut self, key: K, value: V) -> Option<Arc<V>> {
        self.0.insert_cow(key, Arc::new(value))
    }

    pub fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        self.0.remove_cow(key)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.0.get(key).is_some()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        (&self.0).into_iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        (&self.0).into_iter().map(|(_, value)| &**value)
    }

    /// Those whose keys come after this one, in order.
    pub fn after<'a>(&'a self, key: &K) -> impl DoubleEndedIterator<Item = &'a V> + use<'a, K, V> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.0.range((Excluded(key.clone()), Unbounded)).map(|(_, value)| &**value)
    }

    /// Those whose keys come before this one, in order.
    pub fn before<'a>(&'a self, key: &K) -> impl DoubleEndedIterator<Item = &'a V> + use<'a, K, V> {
        self.0.range(..key.clone()).map(|(_, value)| &**value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_it_saw() {
        let mut map = SharedMap::default();
        map.insert(1, "a".to_owned());
        map.insert(2, "b".to_owned());
        let seen = map.clone();
        map.get_or_insert_with(&1, String::new).push('!');
        map.remove(&2);
        map.insert(3, "c".to_owned());
        assert_eq!(seen.values().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            map.keys().zip(map.values()).map(|(k, v)| (*k, v.as_str())).collect::<Vec<_>>(),
            [(1, "a!"), (3, "c")]
        );
        assert_eq!(map.after(&1).collect::<Vec<_>>(), ["c"]);
        assert_eq!(map.before(&3).collect::<Vec<_>>(), ["a!"]);
    }
}
