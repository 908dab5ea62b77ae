//! How far behind a node is, measured without trusting two clocks. Pure.
