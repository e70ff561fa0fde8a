"""What became of a model's predictions: the prediction log, labels, drift, quality over event time,
alerts.
"""
