"""From a folder of images to a generator: the plan of the training, and the page of the results."""
