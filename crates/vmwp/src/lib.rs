//! What the worker and its tests share: the jail.

pub mod confine;
