//! Tabs of real Vango apps come back, and a herd of them loses no session.
