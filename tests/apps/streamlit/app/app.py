import streamlit as st

st.title("Counter")
st.session_state.setdefault("n", 0)
if st.button("Add"):
    st.session_state.n += 1
st.write(f"It is {st.session_state.n}.")
