"""The study files that ship with kt_ray; `kt-ray spaces list` names them."""
