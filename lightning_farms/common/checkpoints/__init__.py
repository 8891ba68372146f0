"""Reading any checkpoint file, safely and tensor by tensor."""
