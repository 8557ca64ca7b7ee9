//! Clusters as text: formats of others and of our own, read into plain structures and written again. No I/O.

pub mod ganeti;
